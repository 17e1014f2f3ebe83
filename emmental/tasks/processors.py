"""What the tasks are: the ten GLUE tasks, the diagnostic set `ax`, and classification or regression on own files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emmental.errors import UserError
from emmental.tasks.tables import Table, read_table, table_format

SPLITS = ("train", "dev", "test")
CUSTOM = "custom"
MAX_DISCOVERED_LABELS = 1000
_OWN_COLUMNS = dict.fromkeys(("train", "dev"), ("sentence1", "sentence2", "label", "index"))
_OWN_COLUMNS["test"] = ("sentence1", "sentence2", "index")
_FILE_FLAGS = {"train": "--train_file", "dev": "--validation_file", "test": "--test_file"}


@dataclass(frozen=True)
class Layout:
    """Where one split keeps its columns. A column is a position from 0 (-1: the last one), or a name.

    Attributes:
        files: names tried in order inside the data folder, or one absolute path.
        text_a, text_b: the sentence, and the second one of a pair or None.
        label: None where the labels are not published.
        index: the example's name in a prediction file; None counts rows from 0.
        names: what the header calls text a, text b (of pairs) and label, as far as it is documented; a header that has
            such a name elsewhere is refused.
        kind: `"tsv"`, `"csv"` or `"jsonl"`.
    """

    files: tuple[str, ...]
    text_a: int | str
    text_b: int | str | None = None
    label: int | str | None = None
    index: int | str | None = None
    names: tuple[str, ...] = ()
    header: bool = True
    kind: str = "tsv"


@dataclass(frozen=True)
class Task:
    """One classification or regression task.

    Attributes:
        name: as `--task_name` spells it; `"custom"` for own files.
        labels: spelled as in the files, in the order of the class ids; empty for regression.
        metrics: keys of `compute_metrics`, none where labels are not published.
        primary_metric: the key that ranks models, the higher the better.
        prediction_file: name of the file that the GLUE server takes.
        train, dev, test: layouts; None where the task has no such split.
        label_range: lowest and highest score of a regression task, or None.
        aliases: other accepted spellings of the name.
    """

    name: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    primary_metric: str | None
    prediction_file: str
    train: Layout | None
    dev: Layout | None
    test: Layout | None
    label_range: tuple[float, float] | None = None
    aliases: tuple[str, ...] = ()

    @property
    def is_regression(self) -> bool:
        """Whether a score is predicted instead of a class."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Width of the model's output: the number of classes, 1 for regression."""
        return len(self.labels) or 1

    @property
    def evaluation_tasks(self) -> tuple[str, ...]:
        """Names of the tasks whose dev or test files judge a model of this task: `mnli` has two."""
        return ("mnli", "mnli-mm") if self.name == "mnli" else (self.name,)

    def layout(self, split: str) -> Layout:
        """Columns of `"train"`, `"dev"` or `"test"`.

        Raises:
            UserError: the task has no such split; names the flag that would give it.
        """
        if split not in SPLITS:
            raise UserError(f"split {split!r} is none of {', '.join(SPLITS)}")
        layout = {"train": self.train, "dev": self.dev, "test": self.test}[split]
        if layout is None and self.name == CUSTOM:
            raise UserError(f"{_FILE_FLAGS[split]} is not given: own files have no {split} split without it")
        if layout is None:
            raise UserError(f"--task_name {self.name} has no {split} split: use --do_predict with a model of mnli")
        return layout


@dataclass
class Split:
    """The examples of one file: `texts_b` is None for single sentences, `labels` (class ids or scores) for test."""

    texts_a: list[str]
    texts_b: list[str] | None
    labels: list[int] | list[float] | None
    indices: list[str]


_YES_NO = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_NLI = ("contradiction", "entailment", "neutral")
_ACC_F1 = ("acc", "f1", "acc_and_f1")
_CORRELATIONS = ("pearson", "spearmanr", "corr")


def _labelled(layout: Layout, file: str, label: int) -> Layout:
    """The layout of a labelled file whose other columns are those of `layout`."""
    return Layout((file,), layout.text_a, layout.text_b, label, layout.index, layout.names, layout.header)


def _pairs(name: str, labels: tuple[str, ...], file: str, test: Layout, **others: object) -> Task:
    """A task of sentence pairs with the label in the last column and the other columns as in its test file."""
    train, dev = _labelled(test, "train.tsv", -1), _labelled(test, "dev.tsv", -1)
    options: dict = {"metrics": ("acc",), "primary_metric": "acc", "train": train, "dev": dev, **others}
    return Task(name, labels, prediction_file=file, test=test, **options)


def _mnli(name: str, suffix: str, file: str, aliases: tuple[str, ...] = ()) -> Task:
    test = Layout((f"test_{suffix}.tsv",), 8, 9, index=0, names=("sentence1", "sentence2"))
    dev = _labelled(test, f"dev_{suffix}.tsv", -1)
    metric = f"{name}/acc"
    return _pairs(name, _NLI, file, test, dev=dev, metrics=(metric,), primary_metric=metric, aliases=aliases)


def _cola() -> Task:
    train, dev = (Layout((f"{split}.tsv",), 3, label=1, header=False) for split in ("train", "dev"))
    test = Layout(("test.tsv",), 1, index=0, names=("sentence",))
    return Task("cola", _YES_NO, ("mcc",), "mcc", "CoLA.tsv", train, dev, test)


def _sst2() -> Task:
    train, dev = (Layout((f"{split}.tsv",), 0, label=1, names=("sentence", "label")) for split in ("train", "dev"))
    test = Layout(("test.tsv",), 1, index=0, names=("sentence",))
    return Task("sst-2", _YES_NO, ("acc",), "acc", "SST-2.tsv", train, dev, test, aliases=("sst2",))


def _mrpc() -> Task:
    names = ("#1 String", "#2 String")
    train, dev = (Layout((f"{s}.tsv",), 3, 4, 0, names=(*names, "Quality")) for s in ("train", "dev"))
    test = Layout(("test.tsv",), 3, 4, index=0, names=names)
    return Task("mrpc", _YES_NO, _ACC_F1, "acc_and_f1", "MRPC.tsv", train, dev, test)


def _stsb() -> Task:
    test = Layout(("test.tsv",), 7, 8, index=0, names=("sentence1", "sentence2"))
    kind = {"metrics": _CORRELATIONS, "primary_metric": "corr", "label_range": (0.0, 5.0), "aliases": ("stsb",)}
    return _pairs("sts-b", (), "STS-B.tsv", test, **kind)


def _qqp() -> Task:
    names = ("question1", "question2")
    train, dev = (Layout((f"{s}.tsv",), 3, 4, 5, 0, (*names, "is_duplicate")) for s in ("train", "dev"))
    test = Layout(("test.tsv",), 1, 2, index=0, names=names)
    return Task("qqp", _YES_NO, _ACC_F1, "acc_and_f1", "QQP.tsv", train, dev, test)


def _ax() -> Task:
    test = Layout(("AX.tsv", "diagnostic.tsv"), 1, 2, index=0, names=("sentence1", "sentence2"))
    return Task("ax", _NLI, (), None, "AX.tsv", None, None, test)


def _second_and_third_column(first: str, second: str) -> Layout:
    return Layout(("test.tsv",), 1, 2, index=0, names=(first, second))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _cola(),
        _sst2(),
        _mrpc(),
        _stsb(),
        _qqp(),
        _mnli("mnli", "matched", "MNLI-m.tsv"),
        _mnli("mnli-mm", "mismatched", "MNLI-mm.tsv", aliases=("mnli_mismatched",)),
        _pairs("qnli", _ENTAILMENT, "QNLI.tsv", _second_and_third_column("question", "sentence")),
        _pairs("rte", _ENTAILMENT, "RTE.tsv", _second_and_third_column("sentence1", "sentence2")),
        _pairs("wnli", _YES_NO, "WNLI.tsv", _second_and_third_column("sentence1", "sentence2")),
        _ax(),
    )
}
"""The GLUE tasks and the diagnostic set by name."""


def resolve_task(name: str) -> Task:
    """The GLUE task of a name, in any case and under any accepted alias.

    Raises:
        UserError: no such task; lists the names.
    """
    for task in TASKS.values():
        if name.lower() in (task.name, *task.aliases):
            return task
    accepted = ", ".join(" or ".join((task.name, *task.aliases)) for task in TASKS.values())
    raise UserError(f"--task_name {name!r} is none of {accepted}")


def user_task(
    train_file: str | Path | None,
    validation_file: str | Path | None,
    test_file: str | Path | None,
    labels: Sequence[str] | None = None,
) -> Task:
    """A task on own files: `.csv` (quoted), `.tsv` (not quoted), `.jsonl` or `.json` (one object a line).

    The columns are `sentence1`, optionally `sentence2`, and `label` (not read in the test file); an `index` column
    names the examples in the prediction file. Scores are regressed when every label of the training file is a number
    and some have a fractional part; otherwise the labels are classes, sorted (as numbers when all are integers).

    Args:
        train_file, validation_file, test_file: paths, or None.
        labels: class names in the order of their ids; an empty sequence means regression; None reads them from
            `train_file`.

    Raises:
        UserError: a file is missing or malformed, the files disagree on `sentence2`, or the labels are neither given
            nor in a training file; one line naming the flag or the file.
    """
    paths = dict(zip(SPLITS, (train_file, validation_file, test_file), strict=True))
    tables = {split: _own_table(path, split) for split, path in paths.items() if path}
    if not tables:
        raise UserError("--train_file, --validation_file or --test_file is required where there is no --task_name")
    paired = {"sentence2" in (table.header or []) for table in tables.values()}
    if len(paired) > 1:
        raise UserError("--train_file, --validation_file, --test_file: some have a column 'sentence2', others do not")
    if labels is None:
        if "train" not in tables:
            raise UserError("--train_file is required to know the labels")
        labels = _discovered_labels(tables["train"])
    _check_labels(labels)
    metrics = ("acc", "f1") if labels else _CORRELATIONS
    layouts = {split: _own_layout(table, split) for split, table in tables.items()}
    return Task(
        CUSTOM,
        tuple(labels),
        metrics,
        "acc" if labels else "corr",
        "predictions.tsv",
        **{split: layouts.get(split) for split in SPLITS},
    )


def labels_of(config: Any) -> list[str]:
    """The labels that a model was trained on, in the order of its outputs, for `user_task`; none for regression."""
    return [config.id2label[number] for number in range(config.num_labels)] if config.num_labels > 1 else []


def _check_labels(labels: Sequence[str]) -> None:
    if len(labels) == 1 or len(set(labels)) != len(labels):
        raise UserError(f"labels {', '.join(labels)}: two or more different ones, or none (regression), are accepted")
    for label in labels:
        if label != label.strip() or "\t" in label or "\n" in label:
            raise UserError(f"label {label!r}: tabs, newlines and outer spaces are not accepted")


def _own_table(path: str | Path, split: str) -> Table:
    if not Path(path).is_file():
        raise UserError(f"{_FILE_FLAGS[split]} {path} is not a file")
    try:
        return read_table(Path(path).absolute(), table_format(path), keys=_OWN_COLUMNS[split])
    except ValueError as error:
        raise UserError(f"{_FILE_FLAGS[split]} {error}") from None


def _own_layout(table: Table, split: str) -> Layout:
    header = table.header or []
    layout = Layout(
        files=(str(table.path),),
        text_a="sentence1",
        text_b="sentence2" if "sentence2" in header else None,
        label=None if split == "test" else "label",
        index="index" if "index" in header else None,
        kind=table_format(table.path),
    )
    for column in (layout.text_a, layout.text_b, layout.label, layout.index):
        if column is not None:
            table.column(column)
    return layout


def _discovered_labels(table: Table) -> tuple[str, ...]:
    """The classes of a training file, empty for regression.

    Raises:
        UserError: fewer than two labels, or so many that a score must be misspelled.
    """
    column = table.column("label")
    first_line: dict[str, int] = {}
    for line, cells in table.rows:
        first_line.setdefault(cells[column].strip(), line)
    values = [_number(label) for label in first_line]
    if None not in values and any(value % 1 for value in values if math.isfinite(value)):
        return ()
    if len(first_line) < 2:
        raise UserError(f"--train_file {table.path}: one label only, {next(iter(first_line))!r}; two are needed")
    if len(first_line) > MAX_DISCOVERED_LABELS:
        odd = next((label for label in first_line if _number(label) is None), next(iter(first_line)))
        raise UserError(
            f"--train_file {table.path}:{first_line[odd]}: label {odd!r} is one of {len(first_line)} different ones; "
            f"at most {MAX_DISCOVERED_LABELS} classes, or numbers only (regression), are accepted"
        )
    if all(re.fullmatch(r"[+-]?[0-9]+", label) for label in first_line):
        return tuple(sorted(first_line, key=lambda label: (int(label), label)))
    return tuple(sorted(first_line))


def split_files(task: Task, data_dir: str | Path | None, split: str) -> list[Path]:
    """The files that hold a split: one for every task so far.

    Raises:
        UserError: no such split, or the file is missing; names flag and file.
    """
    layout = task.layout(split)
    candidates = [Path(data_dir or ".") / name for name in layout.files]
    found = [path for path in candidates if path.is_file()]
    if not found:
        flag = _FILE_FLAGS[split] if task.name == CUSTOM else f"--data_dir {data_dir}"
        names = " or ".join(layout.files)
        raise UserError(f"{flag}: {names} is missing, the {split} split of --task_name {task.name}")
    return found[:1]


def read_split(task: Task, data_dir: str | Path | None, split: str) -> Split:
    """Read the examples of one split.

    Args:
        task: what to read.
        data_dir: folder of a GLUE task; not used for own files.
        split: `"train"`, `"dev"` or `"test"`.

    Raises:
        UserError: a missing file, column or header, an unknown label, a score that is no number or out of range, an
            empty file, or invalid UTF-8; one line naming file and line.
    """
    layout = task.layout(split)
    (path,) = split_files(task, data_dir, split)
    table = read_table(path, layout.kind, layout.header, _OWN_COLUMNS[split])
    if layout.header and layout.kind == "tsv" and task.name != CUSTOM:
        _check_header(table, task, layout)
    texts_a = _cells(table, layout.text_a)
    texts_b = None if layout.text_b is None else _cells(table, layout.text_b)
    labels = None if layout.label is None else _labels(table, layout.label, task)
    return Split(texts_a, texts_b, labels, _indices(table, layout.index))


def _cells(table: Table, column: int | str) -> list[str]:
    """One column; files without a header are checked row by row."""
    position = table.column(column)
    if table.header is None:
        for line, cells in table.rows:
            if len(cells) <= position:
                expected = f"at least {position + 1} are expected"
                raise UserError(f"{table.path}:{line}: {len(cells)} columns where {expected}")
    return [cells[position] for _, cells in table.rows]


def _check_header(table: Table, task: Task, layout: Layout) -> None:
    """Refuse a file whose first line is an example, or whose header has the columns in another order."""
    header = table.header or []
    label = None if layout.label is None else header[table.column(layout.label)]
    is_score = task.is_regression and label is not None and _number(label) is not None
    if label in task.labels or is_score or (label is None and header[0].isdecimal()):
        raise UserError(f"{table.path}:1: an example where the header is expected")
    columns = [column for column in (layout.text_a, layout.text_b, layout.label) if column is not None]
    for name, column in zip(layout.names, columns, strict=False):
        if name in header and header.index(name) != table.column(column):
            raise UserError(
                f"{table.path}:1: {name!r} is column {header.index(name)} where task {task.name} has column "
                f"{table.column(column)}, counted from 0"
            )


def _labels(table: Table, column: int | str, task: Task) -> list[int] | list[float]:
    spelled = _cells(table, column)
    if task.is_regression:
        return [_score(table, line, cell, task) for (line, _), cell in zip(table.rows, spelled, strict=True)]
    ids = {label: number for number, label in enumerate(task.labels)}
    for (line, _), cell in zip(table.rows, spelled, strict=True):
        if cell.strip() not in ids:
            raise UserError(f"{table.path}:{line}: label {cell!r} is none of {', '.join(task.labels)}")
    return [ids[cell.strip()] for cell in spelled]


def _score(table: Table, line: int, cell: str, task: Task) -> float:
    low, high = task.label_range or (-math.inf, math.inf)
    value = _number(cell)
    if value is None or not math.isfinite(value) or not low <= value <= high:
        accepted = f"from {low:g} to {high:g}" if task.label_range else "that is finite"
        raise UserError(f"{table.path}:{line}: score {cell!r} where a number {accepted} is expected")
    return value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _indices(table: Table, column: int | str | None) -> list[str]:
    if column is None:
        return [str(row) for row in range(len(table.rows))]
    indices = _cells(table, column)
    for (line, _), index in zip(table.rows, indices, strict=True):
        if "\t" in index or "\n" in index:
            raise UserError(f"{table.path}:{line}: a tab or newline in the index {index!r}")
    return indices
