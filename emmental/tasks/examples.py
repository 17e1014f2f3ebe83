"""Reads the examples of a split: finds its files, reads rows and labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from emmental.errors import UserError, names_near
from emmental.tasks.files import Row, Table, read_table
from emmental.tasks.hub_layout import hub_files
from emmental.tasks.labels import class_ids, how_numbers_are_read, number_in, scores
from emmental.tasks.set_aside import drawn_by_seed, row_places
from emmental.tasks.task import CUSTOM, FILE_FLAGS, Layout, Split, Task


def located(task: Task, data_dir: str | Path | None, split: str) -> tuple[Layout, list[Path]]:
    """Layout and files of a split: `.tsv` files, or one or more parquet files of the Hub.

    Raises:
        UserError: no such split, or the file is missing. The message names flag and file.
    """
    layout, folder = task.layout(split), Path(data_dir or ".")
    for name in layout.files:
        if (folder / name).is_file():
            return layout, [folder / name]
    if task.name == CUSTOM:
        raise UserError(f"{FILE_FLAGS[split]}: {layout.files[0]} is missing, the {split} split of own files")
    found = hub_files(task, folder, split)
    if found is None and not folder.is_dir():
        near = names_near(str(folder))
        raise UserError(f"--data_dir {data_dir}: there is no such folder" + (f"; {near}" if near else ""))
    if found is None:
        names = " or ".join(layout.files)
        raise UserError(f"--data_dir {data_dir}: {names} is missing, the {split} split of --task_name {task.name}")
    return replace(found[0], held_back_from=layout.held_back_from), found[1]


def split_files(task: Task, data_dir: str | Path | None, split: str) -> list[Path]:
    """The files that hold a split, see `located`."""
    return located(task, data_dir, split)[1]


def read_split(task: Task, data_dir: str | Path | None, split: str) -> Split:
    """Read the examples of one split.

    Args:
        task: what to read.
        data_dir: folder of a GLUE task, in `.tsv` files or the Hub's layout; not used for own files.
        split: `"train"`, `"dev"` or `"test"`.

    Raises:
        UserError: a missing file, column or header, a missing or unknown label, a score that is not a number or
            out of range, an empty file, or an encoding that cannot be read; one line naming file and line.
    """
    layout, whole = _all_rows(task, data_dir, split)
    rows = np.ones(len(whole.texts_a), bool)
    if layout.is_split:
        rows = _set_aside(layout, whole) == (split == "dev")
    if layout.held_back_from is not None:
        held_back = rows & _held_back(layout, whole)
        rows &= ~held_back
        whole.notes.append(
            f"{held_back.sum()} of the rows are held back from all training, by a hash of their text: the cascade is "
            "calibrated on them"
        )
    return whole if rows.all() else _chosen(whole, rows)


def read_held_back(task: Task, data_dir: str | Path | None) -> Split:
    """Read the training rows that `emmental.tasks.held_back` keeps out of the training; see `read_split`."""
    layout, whole = _all_rows(task, data_dir, "train")
    rows = _held_back(layout, whole)
    return _chosen(whole, rows & ~_set_aside(layout, whole) if layout.is_split else rows)


def _all_rows(task: Task, data_dir: str | Path | None, split: str) -> tuple[Layout, Split]:
    """The rows of the files of a split, whichever split they belong to."""
    layout, paths = located(task, data_dir, split)
    try:
        parts = [_examples(task, layout, path) for path in paths]
    except UserError as error:
        raise UserError(f"{FILE_FLAGS[split]} {error}" if task.name == CUSTOM else str(error)) from None
    whole = _joined(parts)
    if layout.index is None:  # counted, over all files
        whole.indices = [str(row) for row in range(len(whole.texts_a))]
    return layout, whole


def _set_aside(layout: Layout, whole: Split) -> np.ndarray:
    """(N,) bool: the rows of a file of two splits that are dev rows."""
    if layout.set_aside is not None:
        return drawn_by_seed(whole.labels or [], layout.set_aside)
    return row_places(whole.texts_a, whole.texts_b) <= layout.set_aside_up_to


def _held_back(layout: Layout, whole: Split) -> np.ndarray:
    """(N,) bool: the rows from the layout's limit on."""
    return row_places(whole.texts_a, whole.texts_b) >= (
        1.0 if layout.held_back_from is None else layout.held_back_from
    )


def _examples(task: Task, layout: Layout, path: Path) -> Split:
    table = read_table(
        path,
        layout.kind,
        layout.header,
        layout.columns,
        delimiter=layout.delimiter,
        encoding=layout.encoding,
        skips_broken_rows=layout.skips_broken_rows,
        as_found=task.name == CUSTOM,
    )
    if layout.header and layout.kind == "tsv" and task.name != CUSTOM:
        _check_header(table, task, layout)
    texts_a = _cells(table, layout.text_a)
    texts_b = None if layout.text_b is None else _cells(table, layout.text_b)
    labels = None if layout.label is None else _labels(table, layout, task)
    return Split(texts_a, texts_b, labels, _indices(table, layout.index), table.notes)


def _joined(parts: list[Split]) -> Split:
    whole = parts[0]
    for part in parts[1:]:
        whole.texts_a += part.texts_a
        whole.indices += part.indices
        whole.notes += part.notes
        if whole.texts_b is not None and part.texts_b is not None:
            whole.texts_b += part.texts_b
        if whole.labels is not None and part.labels is not None:
            whole.labels += part.labels
    return whole


def _chosen(whole: Split, rows: np.ndarray) -> Split:
    numbers = np.flatnonzero(rows).tolist()

    def those(values: list | None) -> list | None:
        return None if values is None else [values[number] for number in numbers]

    labels, notes = those(whole.labels), whole.notes
    return Split(those(whole.texts_a) or [], those(whole.texts_b), labels, those(whole.indices) or [], notes)


def _cells(table: Table, column: int | str) -> list[str]:
    """The cells of one column. Files without a header are checked row by row."""
    position = table.column(column)
    if table.header is None:
        for line, cells in table.rows:
            if len(cells) <= position:
                expected = f"at least {position + 1} are expected"
                raise UserError(f"{table.path}:{line}: {len(cells)} columns where {expected}")
    return [cells[position] for _, cells in table.rows]


def _check_header(table: Table, task: Task, layout: Layout) -> None:
    """Refuse a file whose first line is an example, or whose header has its columns in another order."""
    header = table.header or []
    label = None if layout.label is None else header[table.column(layout.label)]
    is_score = task.is_regression and label is not None and number_in(label) is not None
    if label in task.labels or is_score or (label is None and header[0].isdecimal()):
        raise UserError(f"{table.path}:1: an example where the header is expected")
    columns = [column for column in (layout.text_a, layout.text_b, layout.label) if column is not None]
    for name, column in zip(layout.names, columns, strict=False):
        if name in header and header.index(name) != table.column(column):
            raise UserError(
                f"{table.path}:1: {name!r} is column {header.index(name)} where task {task.name} has column "
                f"{table.column(column)}, counted from 0"
            )


def _labels(table: Table, layout: Layout, task: Task) -> list[int] | list[float]:
    column = layout.label if layout.label is not None else -1
    rows: list[Row] = [(line, [cell]) for (line, _), cell in zip(table.rows, _cells(table, column), strict=True)]
    if task.is_regression:
        written = (layout.decimal_comma, layout.thousands)
        if any(written):
            table.notes.append(f"{table.path}: {how_numbers_are_read(rows, 0, *written)}")
        return scores(str(table.path), rows, 0, task, *written)
    if layout.codes:
        rows = [(line, [_meaning(table, line, cell, layout.codes)]) for line, (cell,) in rows]
    return class_ids(str(table.path), rows, 0, task)


def _meaning(table: Table, line: int, code: str, codes: tuple[str, ...]) -> str:
    if code not in map(str, range(len(codes))):
        raise UserError(f"{table.path}:{line}: label {code} where 0 to {len(codes) - 1} are expected")
    return codes[int(code)]


def _indices(table: Table, column: int | str | None) -> list[str]:
    if column is None:
        return []
    indices = _cells(table, column)
    for (line, _), index in zip(table.rows, indices, strict=True):
        if "\t" in index or "\n" in index:
            raise UserError(f"{table.path}:{line}: a tab or newline in the index {index!r}")
    return indices
