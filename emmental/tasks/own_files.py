"""Makes a task, classification or regression, from the user's own files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from emmental.errors import UserError, names_near
from emmental.tasks.classes import are_numbered, classes_of_model, in_order_of, refuse_several_labels, same_class
from emmental.tasks.files import TEXT_LINES, Table, read_table, table_format
from emmental.tasks.labels import classes_in, look_alikes, number_format, sorted_labels, without_missing
from emmental.tasks.set_aside import TrainedRows, choose, row_places, trained_rows, warning_of_seen_rows
from emmental.tasks.task import CUSTOM, FILE_FLAGS, SPLITS, Layout, Task, listed

logger = logging.getLogger(__name__)

TEXT, PAIR, LABEL, INDEX = "sentence1", "sentence2", "label", "index"
KINDS = ("classification", "regression")


@dataclass(frozen=True)
class Reading:
    """The user's settings for reading own files. None means detected, or the default.

    Attributes:
        text, pair, label: names of the columns; default: `sentence1`, `sentence2` if the file has it, and `label`.
        delimiter, encoding: of text files.
        kind: `"classification"` or `"regression"`.
        positive_label: the class that F1 is computed for.
        set_aside: whether a tenth of the training rows becomes dev data, if there is no validation file.
        model: what the user calls the model to start from or to evaluate: flag and value.
        earlier: what that model records about the rows that it was trained on.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    delimiter: str | None = None
    encoding: str | None = None
    kind: str | None = None
    positive_label: str | None = None
    set_aside: bool = False
    model: str = "--model_name_or_path"
    earlier: TrainedRows | None = None

    def columns(self, split: str) -> tuple[str, ...]:
        """The columns that a reader looks for."""
        labels = () if split == "test" else (self.label or LABEL,)
        return (self.text or TEXT, self.pair or PAIR, *labels, INDEX)


_AS_RECOGNISED = Reading()


def user_task(
    train_file: str | Path | None,
    validation_file: str | Path | None,
    test_file: str | Path | None,
    labels: Sequence[str] | None = None,
    reading: Reading = _AS_RECOGNISED,
) -> Task:
    """A task on own files: `.csv` (quoted), `.tsv` (not quoted), `.jsonl` or `.json` (one object a line), `.parquet`.

    The columns are `sentence1`, optionally `sentence2`, and `label` (not read in the test file); an `index` column
    names the examples in the prediction file. Labels are scores if every label of the training file is a number and
    some have a fractional part. Otherwise they are classes, sorted (as numbers if all are integers).

    Args:
        train_file, validation_file, test_file: paths, or None.
        labels: class names in the order of their ids; an empty sequence means regression; None reads them from
            `train_file`, or without it from `validation_file`.
        reading: the user's settings.

    Raises:
        UserError: a file is missing or malformed, the files disagree on the second text, or the labels are neither
            given nor in a labelled file; one line naming the flag or the file.
    """
    paths = dict(zip(SPLITS, (train_file, validation_file, test_file), strict=True))
    tables = {split: _table(path, split, reading) for split, path in paths.items() if path}
    if not tables:
        raise UserError("--train_file, --validation_file or --test_file is required without --task_name")
    layouts = {split: _layout(table, split, reading) for split, table in tables.items()}
    layouts |= _with_number_formats(tables, layouts, reading)
    if len({layout.text_b for layout in layouts.values()}) > 1:
        flags = ", ".join(FILE_FLAGS.values())
        raise UserError(f"{flags}: some have a column {reading.pair or PAIR!r}, others do not")
    found = next((split for split in ("train", "dev") if split in tables), None)
    if labels is None:
        if found is None:
            raise UserError("--train_file or --validation_file is required to know the labels")
        named = layouts[found].codes if reading.kind != "regression" else ()
        labels = named or _classes(tables[found], layouts[found], FILE_FLAGS[found], reading.kind)
    for split, layout in layouts.items():
        if not set(labels) & set(layout.codes):  # scores, or classes that are numbers
            layouts[split] = replace(layout, codes=())
    _check_labels(labels)
    recorded = _split_rows(tables, layouts, reading)
    task = Task(
        CUSTOM,
        tuple(labels),
        ("acc", "f1") if labels else ("pearson", "spearmanr", "corr", "rmse", "mae"),
        "acc" if labels else "corr",
        "predictions.tsv",
        trained_rows=recorded,
        **{split: layouts.get(split) for split in SPLITS},
    )
    positive = reading.positive_label
    if positive is None and len(labels) == 2:
        named = [layout.codes for layout in layouts.values() if layout.codes]
        positive = (named[0] if named else sorted_labels(labels))[
            1
        ]  # the same class for every order of a model's outputs
    return task if positive is None else task.with_positive(positive)


def _split_rows(tables: dict[str, Table], layouts: dict[str, Layout], reading: Reading) -> TrainedRows | None:
    """Set rows of the training file aside, if there is no validation file. Returns the record for the model."""
    seen = "dev" in tables and warning_of_seen_rows(_places(tables, layouts, "dev"), reading.earlier, reading.model)
    if seen:
        logger.warning(seen)
    if "train" not in tables:
        return None
    places = _places(tables, layouts, "train")
    if "dev" in layouts or not reading.set_aside:
        return trained_rows(places, 0.0)
    try:
        record, warning = choose(places, reading.earlier, reading.model)
    except UserError as error:
        raise UserError(f"{FILE_FLAGS['train']} {tables['train'].path}: {error}") from None
    if warning:
        logger.warning(warning)
    limit = record.limit if record.seed is None else None
    layouts["train"] = layouts["dev"] = replace(layouts["train"], set_aside=record.seed, set_aside_up_to=limit)
    return record


def _places(tables: dict[str, Table], layouts: dict[str, Layout], split: str) -> np.ndarray:
    table, layout = tables[split], layouts[split]
    texts = [
        None if column is None else [cells[table.column(column)] for _, cells in table.rows]
        for column in (layout.text_a, layout.text_b)
    ]
    return row_places(texts[0] or [], texts[1])


def unlabelled_task(file: str | Path, labelled: Task, reading: Reading = _AS_RECOGNISED) -> Task:
    """A task whose test rows are the texts of a file, for a teacher to label. A `.txt` file has a text a line.

    Of texts that the labelled task holds back from training, none is among them.

    Args:
        file: as a test file of `user_task`; labels in it are not read.
        labelled: the task that gets more text. It says whether texts are pairs.
        reading: the user's settings.

    Raises:
        UserError: the file is missing, malformed or empty, or only one of file and task has pairs.
    """
    pairs = labelled.layout("train").text_b is not None
    if Path(file).suffix.lower() == ".txt":
        if not Path(file).is_file():
            raise UserError(f"{FILE_FLAGS['test']} {file} is not a file")
        layout = Layout((str(Path(file).absolute()),), 0, header=False, kind=TEXT_LINES, encoding=reading.encoding)
    else:
        layout = _layout(_table(file, "test", reading), "test", reading)
    if (layout.text_b is not None) != pairs:
        raise UserError(
            f"{FILE_FLAGS['test']} {file}: the task has {'pairs' if pairs else 'single texts'}, and the file has "
            f"{'a second text' if layout.text_b is not None else 'no second text'}"
        )
    layout = replace(layout, held_back_from=labelled.layout("train").held_back_from)
    return replace(labelled, name=CUSTOM, train=None, dev=None, test=layout)


def task_of_model(
    config: Any,
    called: str,
    validation_file: str | Path | None,
    test_file: str | Path | None,
    labels: Sequence[str] | None = None,
    reading: Reading = _AS_RECOGNISED,
    train_file: str | Path | None = None,
) -> Task:
    """The task of a model on own files: the classes are the model's.

    If the model does not name them (`LABEL_0`, ...), they are those of the labelled file, sorted.

    Args:
        config: the model's configuration.
        called: what the user calls the model, for messages: flag and value.
        validation_file, test_file, reading: as for `user_task`.
        labels: the classes in the order of the model's outputs, if its own names differ from those of the data.
        train_file: without a `validation_file`, the file of which a part was set aside.

    Raises:
        UserError: as `user_task` and `class_order`.
    """
    refuse_several_labels(config, called)
    names = classes_of_model(config, called)
    files = (train_file, validation_file, test_file)
    labelled, split = validation_file or train_file, "dev" if validation_file else "train"
    if len(names) == 1:
        return user_task(*files, (), reading)
    if labels is not None:
        return in_order_of(user_task(*files, labels, reading), config, called, labels)
    if are_numbered(names) and labelled is not None:
        return in_order_of(user_task(*files, None, reading), config, called)
    return replace(user_task(*files, _as_the_data_spells(names, labelled, split, reading), reading), names=names)


def _as_the_data_spells(
    names: tuple[str, ...], file: str | Path | None, split: str, reading: Reading
) -> tuple[str, ...]:
    """The names of a model's classes in the spelling of a file, if that differs only in case, hyphens and spaces.

    Raises:
        UserError: no label of the file is a class of the model.
    """
    if file is None:
        return names
    flag, table = FILE_FLAGS[split], _table(file, split, reading)
    layout = _layout(table, split, reading)
    place, column = f"{flag} {table.path}", table.column(layout.label or LABEL)
    cells = without_missing(place, table.rows, column)
    known = sorted({*layout.codes, *cells})
    spelled = tuple(name if name in known else same_class(name, known) or name for name in names)
    if not set(known) & set(spelled):
        raise UserError(
            f"{place}:{table.rows[0][0]}: label {cells[0]!r} is none of {listed(names)}; --label_names gives the "
            "file's names in the order of the model's outputs"
        )
    return spelled


def _check_labels(labels: Sequence[str]) -> None:
    if len(labels) == 1 or len(set(labels)) != len(labels):
        raise UserError(f"labels {listed(labels)}: two or more different ones, or none (regression), are accepted")
    for label in labels:
        if label != label.strip() or "\t" in label or "\n" in label:
            raise UserError(f"label {label!r}: tabs, newlines and outer spaces are not accepted")


def _table(path: str | Path, split: str, reading: Reading) -> Table:
    flag = FILE_FLAGS[split]
    if not Path(path).is_file():
        near = names_near(str(path), files=True)
        raise UserError(f"{flag} {path} is not a file" + (f"; {near}" if near else ""))
    how = {"delimiter": reading.delimiter, "encoding": reading.encoding}
    try:
        return read_table(Path(path).absolute(), table_format(path), keys=reading.columns(split), as_found=True, **how)
    except UserError as error:
        raise UserError(f"{flag} {error}") from None


def _layout(table: Table, split: str, reading: Reading) -> Layout:
    header = table.header or []
    label = None if split == "test" else reading.label or LABEL
    paired = reading.pair or (PAIR if PAIR in header else None)
    wanted = [column for column in (reading.text or TEXT, paired, label) if column is not None]
    if len(set(wanted)) < len(wanted):
        raise UserError(
            f"--text_column, --text_pair_column, --label_column: one column is named twice ({listed(wanted)})"
        )
    try:
        table.require(wanted)
    except UserError as error:
        raise UserError(
            f"{FILE_FLAGS[split]} {error} (--text_column, --text_pair_column and --label_column take other names)"
        ) from None
    return Layout(
        files=(str(table.path),),
        text_a=reading.text or TEXT,
        text_b=paired,
        label=label,
        index=INDEX if INDEX in header else None,
        kind=table.kind,
        columns=reading.columns(split),
        delimiter=reading.delimiter,
        encoding=reading.encoding,
        codes=() if label is None else tuple(table.class_names.get(label, ())),
    )


def _with_number_formats(tables: dict[str, Table], layouts: dict[str, Layout], reading: Reading) -> dict[str, Layout]:
    """Layouts that say how numbers are written, if that is not as `1234.5`: in all labelled files alike, or in each.

    Commas make numbers only if they do not separate the cells, or the user says that labels are scores: otherwise
    several labels are possible.
    """
    labelled = [split for split, layout in layouts.items() if layout.label is not None]
    semicolons = any(tables[split].delimiter == ";" for split in labelled)
    if reading.kind == "classification" or not (semicolons or reading.kind == "regression"):
        return {}

    def format_of(splits: Sequence[str]) -> tuple[bool, str] | None:
        return number_format(
            row[tables[split].column(layouts[split].label or LABEL)]
            for split in splits
            for _, row in tables[split].rows
        )

    found = {split: format_of(labelled) or format_of([split]) or (False, "") for split in labelled}
    return {
        split: replace(layouts[split], decimal_comma=decimal_comma, thousands=thousands)
        for split, (decimal_comma, thousands) in found.items()
    }


def _classes(table: Table, layout: Layout, flag: str, kind: str | None) -> tuple[str, ...]:
    place, column = f"{flag} {table.path}", table.column(layout.label or LABEL)
    labels = classes_in(place, table.rows, column, kind, layout.decimal_comma, layout.thousands)
    if labels:
        for warning in look_alikes([row[column].strip() for _, row in table.rows]):
            logger.warning("%s: %s", place, warning)
    return labels
