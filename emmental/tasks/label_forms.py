"""How the labels of a row are written if it has several: a list, a cell with a separator, or a column for each."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emmental.errors import UserError
from emmental.tasks.files import Table
from emmental.tasks.labels import is_list, is_missing
from emmental.tasks.wording import listed

_YES, _NO = ("1", "1.0", "true"), ("0", "0.0", "false")
_ACCIDENT, _FEWEST_ROWS = 0.01, 20
"""If at most this share of the rows has another number of labels than one, that may be a mistake."""


class LabelForm:
    """A way to write several labels. `names` reads them."""

    def columns(self, label: str) -> tuple[str, ...]:
        """The columns that hold the labels; `label` is the user's name of the label column."""
        return (label,)

    def names(self, place: str, table: Table, label: str, codes: Sequence[str] = ()) -> list[list[str]]:
        """The labels of every row, each once. An empty list means that the row has none.

        Args:
            place: the file, for messages.
            table: its rows.
            label: see `columns`.
            codes: the names for 0, 1, ... in the file; empty if labels are spelled.

        Raises:
            UserError: a label is missing, or cannot be read; names file and line.
        """
        column = table.column(label)
        found = []
        for line, cells in table.rows:
            if (cell := cells[column].strip()) and is_missing(cell):
                raise UserError(
                    f"{place}:{line}: the labels are missing ({cell!r}); an empty list or cell says that there is none"
                )
            parts = [part.strip() for part in self.parts(f"{place}:{line}", cell)]
            found.append([*dict.fromkeys(_spelled(part, codes, f"{place}:{line}") for part in parts if part)])
        return found

    def parts(self, place: str, cell: str) -> Sequence[str]:
        """The labels in a cell."""
        raise NotImplementedError


@dataclass(frozen=True)
class ListCells(LabelForm):
    """A list in each cell, in JSON or in Python; one label without brackets is a list too."""

    def parts(self, place: str, cell: str) -> Sequence[str]:
        """The items of the list."""
        if not is_list(cell):
            return (cell,)
        values = _items(cell)
        if values is None or not all(isinstance(each, str | int | float) for each in values):
            raise UserError(f'{place}: label {cell!r:.80} is no list of labels; ["a", "b"] is one, [] has none')
        return [str(each).lower() if isinstance(each, bool) else str(each) for each in values]


@dataclass(frozen=True)
class SeparatedCells(LabelForm):
    """Labels with a separator between them; an empty cell has none. A list is read as one too."""

    separator: str

    def parts(self, place: str, cell: str) -> Sequence[str]:
        """What stands between the separators."""
        items = _items(cell) if is_list(cell) else None
        return cell.split(self.separator) if items is None else ListCells().parts(place, cell)


@dataclass(frozen=True)
class LabelColumns(LabelForm):
    """A column of 0 and 1 for each label, named after it."""

    labels: tuple[str, ...]

    def columns(self, label: str) -> tuple[str, ...]:
        """One for each label."""
        return self.labels

    def names(self, place: str, table: Table, label: str, codes: Sequence[str] = ()) -> list[list[str]]:
        """See `LabelForm.names`."""
        columns = [(name, table.column(name)) for name in self.labels]
        found = []
        for line, cells in table.rows:
            values = [(name, cells[column].strip().lower()) for name, column in columns]
            for name, value in values:
                if value not in (*_YES, *_NO):
                    what = f"is missing ({value!r})" if not value or is_missing(value) else f"is {value!r:.40}"
                    raise UserError(f"{place}:{line}: label {name!r} {what}; a column for each label accepts 0 and 1")
            found.append([name for name, value in values if value in _YES])
        return found


def form_of(
    place: str, table: Table, label: str, columns: Sequence[str] = (), separator: str | None = None
) -> LabelForm | None:
    """How several labels are written in a file; None if a row has one.

    Args:
        place: the file, for messages.
        table: its rows.
        label: the label column.
        columns: the user's columns of 0 and 1.
        separator: the user's separator.

    Raises:
        UserError: some labels are lists, but not most of them.
    """
    if len(columns) > 1:
        return LabelColumns(tuple(columns))
    if separator:
        return SeparatedCells(separator)
    column = table.column(label)
    filled = [(line, cell) for line, cells in table.rows if (cell := cells[column].strip())]
    lists = [(line, cell) for line, cell in filled if is_list(cell)]
    if not lists:
        return None
    if 2 * len(lists) <= len(filled):
        line, cell = lists[0]
        raise UserError(
            f"{place}:{line}: label {cell!r:.80} is a list, and so is that of {len(lists)} of {len(table.rows)} rows; "
            "correct these rows, or make every label a list to train several labels at once"
        )
    return ListCells()


def accident(place: str, table: Table, names: Sequence[Sequence[str]]) -> str | None:
    """A warning if nearly every row has exactly one label, as if the others were mistakes; else None."""
    odd = [(line, labels) for (line, _), labels in zip(table.rows, names, strict=True) if len(labels) != 1]
    if len(names) < _FEWEST_ROWS or len(odd) > _ACCIDENT * len(names):
        return None
    one = "if a row has one class, write it as one label: then one class is trained"
    if not odd:
        return f"{place}: all {len(names)} rows have exactly one label, and several labels at once are trained; {one}"
    line, labels = odd[0]
    return (
        f"{place}:{line}: {len(odd)} of {len(names)} rows have several labels or none, such as "
        f"{listed(labels) or 'none'} here, all others exactly one; several labels at once are trained; {one}"
    )


def label_sets(
    place: str, table: Table, names: Sequence[Sequence[str]], ids: dict[str, int], labels: Sequence[str]
) -> list[tuple[int, ...]]:
    """0 or 1 for each label, of every row.

    Args:
        place: the file, for messages.
        table: its rows, for their lines.
        names: of the labels of each row.
        ids: name -> number of the label.
        labels: all labels, for messages.

    Raises:
        UserError: a name is no label of the task.
    """
    found = []
    for (line, _), each in zip(table.rows, names, strict=True):
        row = [0] * len(labels)
        for name in each:
            if name not in ids:
                raise UserError(f"{place}:{line}: label {name!r} is none of {listed(labels)}")
            row[ids[name]] = 1
        found.append(tuple(row))
    return found


def _items(cell: str) -> list[Any] | None:
    """The items of a list in JSON, or as Python writes it; None if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            values = read(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            continue
        return values if isinstance(values, list) else None
    return None


def _spelled(part: str, codes: Sequence[str], place: str) -> str:
    if not codes or part in codes:
        return part
    if not part.isdecimal() or int(part) >= len(codes):
        raise UserError(f"{place}: label {part} where 0 to {len(codes) - 1} are expected")
    return codes[int(part)]
