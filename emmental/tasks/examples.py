"""The examples of a split: its file found and read, its labels understood."""

from __future__ import annotations

import math
from pathlib import Path

from emmental.errors import UserError
from emmental.tasks.own_files import OWN_COLUMNS, number_in
from emmental.tasks.tables import Table, read_table
from emmental.tasks.task import CUSTOM, FILE_FLAGS, Layout, Split, Task, listed


def split_files(task: Task, data_dir: str | Path | None, split: str) -> list[Path]:
    """The files that hold a split: one for every task so far.

    Raises:
        UserError: no such split, or the file is missing; names flag and file.
    """
    layout = task.layout(split)
    candidates = [Path(data_dir or ".") / name for name in layout.files]
    found = [path for path in candidates if path.is_file()]
    if not found:
        flag = FILE_FLAGS[split] if task.name == CUSTOM else f"--data_dir {data_dir}"
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
    table = read_table(path, layout.kind, layout.header, OWN_COLUMNS[split])
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


def _labels(table: Table, column: int | str, task: Task) -> list[int] | list[float]:
    spelled = _cells(table, column)
    if task.is_regression:
        return [_score(table, line, cell, task) for (line, _), cell in zip(table.rows, spelled, strict=True)]
    ids = {label: number for number, label in enumerate(task.labels)}
    ids |= {name: number for number, name in enumerate(task.names) if name not in ids}
    for (line, _), cell in zip(table.rows, spelled, strict=True):
        if cell.strip() not in ids:
            raise UserError(f"{table.path}:{line}: label {cell!r} is none of {listed(task.labels)}")
    return [ids[cell.strip()] for cell in spelled]


def _score(table: Table, line: int, cell: str, task: Task) -> float:
    low, high = task.label_range or (-math.inf, math.inf)
    value = number_in(cell)
    if value is None or not math.isfinite(value) or not low <= value <= high:
        accepted = f"from {low:g} to {high:g}" if task.label_range else "that is finite"
        raise UserError(f"{table.path}:{line}: score {cell!r} where a number {accepted} is expected")
    return value


def _indices(table: Table, column: int | str | None) -> list[str]:
    if column is None:
        return [str(row) for row in range(len(table.rows))]
    indices = _cells(table, column)
    for (line, _), index in zip(table.rows, indices, strict=True):
        if "\t" in index or "\n" in index:
            raise UserError(f"{table.path}:{line}: a tab or newline in the index {index!r}")
    return indices
