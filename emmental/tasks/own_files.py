"""Classification or regression on the user's own files."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emmental.errors import UserError
from emmental.tasks.classes import are_numbered, in_order_of, model_classes
from emmental.tasks.tables import Table, read_table, table_format
from emmental.tasks.task import CUSTOM, FILE_FLAGS, SPLITS, Layout, Task, listed

MAX_DISCOVERED_LABELS = 1000
OWN_COLUMNS = dict.fromkeys(("train", "dev"), ("sentence1", "sentence2", "label", "index"))
OWN_COLUMNS["test"] = ("sentence1", "sentence2", "index")


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
            `train_file`, or without it from `validation_file`.

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
        found = next((split for split in ("train", "dev") if split in tables), None)
        if found is None:
            raise UserError("--train_file or --validation_file is required to know the labels")
        labels = _discovered_labels(tables[found], FILE_FLAGS[found])
    _check_labels(labels)
    metrics = ("acc", "f1") if labels else ("pearson", "spearmanr", "corr")
    layouts = {split: _own_layout(table, split) for split, table in tables.items()}
    return Task(
        CUSTOM,
        tuple(labels),
        metrics,
        "acc" if labels else "corr",
        "predictions.tsv",
        **{split: layouts.get(split) for split in SPLITS},
    )


def task_of_model(config: Any, called: str, validation_file: str | Path | None, test_file: str | Path | None) -> Task:
    """The task of a model on own files without its training file: the classes are the model's.

    Where the model does not name them (`LABEL_0`, ...), they are those of `validation_file`, sorted.

    Args:
        config: the model's configuration.
        called: what the user calls the model, for messages: flag and value.
        validation_file, test_file: as for `user_task`.

    Raises:
        UserError: as `user_task` and `class_order`.
    """
    names = model_classes(config, called)
    if len(names) == 1:
        return user_task(None, validation_file, test_file, labels=())
    if not are_numbered(names) or validation_file is None:
        return user_task(None, validation_file, test_file, names)
    return in_order_of(user_task(None, validation_file, test_file), config, called)


def _check_labels(labels: Sequence[str]) -> None:
    if len(labels) == 1 or len(set(labels)) != len(labels):
        raise UserError(f"labels {listed(labels)}: two or more different ones, or none (regression), are accepted")
    for label in labels:
        if label != label.strip() or "\t" in label or "\n" in label:
            raise UserError(f"label {label!r}: tabs, newlines and outer spaces are not accepted")


def _own_table(path: str | Path, split: str) -> Table:
    if not Path(path).is_file():
        raise UserError(f"{FILE_FLAGS[split]} {path} is not a file")
    try:
        return read_table(Path(path).absolute(), table_format(path), keys=OWN_COLUMNS[split])
    except ValueError as error:
        raise UserError(f"{FILE_FLAGS[split]} {error}") from None


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


def _discovered_labels(table: Table, flag: str) -> tuple[str, ...]:
    """The classes of a labelled file, empty for regression.

    Raises:
        UserError: fewer than two labels, or so many that a score must be misspelled.
    """
    column = table.column("label")
    first_line: dict[str, int] = {}
    for line, cells in table.rows:
        first_line.setdefault(cells[column].strip(), line)
    values = [number_in(label) for label in first_line]
    if None not in values and any(value % 1 for value in values if math.isfinite(value)):
        return ()
    if len(first_line) < 2:
        raise UserError(f"{flag} {table.path}: one label only, {next(iter(first_line))!r}; two are needed")
    if len(first_line) > MAX_DISCOVERED_LABELS:
        odd = next((label for label in first_line if number_in(label) is None), next(iter(first_line)))
        raise UserError(
            f"{flag} {table.path}:{first_line[odd]}: label {odd!r} is one of {len(first_line)} different ones; "
            f"at most {MAX_DISCOVERED_LABELS} classes, or numbers only (regression), are accepted"
        )
    if all(re.fullmatch(r"[+-]?[0-9]+", label) for label in first_line):
        return tuple(sorted(first_line, key=lambda label: (int(label), label)))
    return tuple(sorted(first_line))


def number_in(text: str) -> float | None:
    """The number that a cell spells, also `inf` and `nan`; None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None
