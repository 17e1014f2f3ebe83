"""Reads tables in text: tab-separated, where `"` is an ordinary character, and comma-separated with quotes."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

from emmental.errors import UserError

Rows = list[tuple[int, list[str]]]
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_LIMIT = csv.field_size_limit()


def recognised_delimiter(header: str, expected: str, columns: Collection[str]) -> str:
    """The delimiter that splits the header into names with at least one of `columns`; else `expected`."""
    for delimiter in (expected, *DELIMITERS):
        if any(name.strip().strip('"') in columns for name in header.split(delimiter)):
            return delimiter
    return expected


def tab_separated(lines: Sequence[str]) -> Rows:
    """Rows with their line numbers. Empty lines are rows too, except at the end of a table of several columns."""
    end = len(lines)
    while end > 1 and not lines[end - 1] and "\t" in lines[0]:
        end -= 1
    return [(number, line.split("\t")) for number, line in enumerate(lines[:end], start=1)]


def quoted(path: Path, lines: Sequence[str], delimiter: str) -> tuple[Rows, int]:
    """Rows of a CSV file, each with the number of its first line, and the number of skipped blank lines.

    Blank lines after the last row do not count. In a table of one column a blank line is an empty cell.

    Raises:
        UserError: a quote that is not closed, text after a closed quote, a carriage return in a cell without quotes,
            a cell of more characters than Python's `csv` reads, a line of nothing but delimiters.
    """
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    rows: Rows = []
    line, blank, skipped = 1, 0, 0
    try:
        for cells in reader:
            single = bool(rows) and len(rows[0][1]) == 1
            if cells or single:
                skipped, blank = skipped + blank, 0
                rows.append((line, cells or [""]))
            else:
                blank += 1
            if len(cells) > 1 and not any(cell.strip() for cell in cells):
                raise UserError(f"{path}:{line}: a line of nothing but {DELIMITERS.get(delimiter, 'delimiters')}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(_fault(path, lines, line, delimiter, str(error))) from None
    return rows, skipped


def _fault(path: Path, lines: Sequence[str], first: int, delimiter: str, message: str) -> str:
    """A message: what is wrong with the row that begins in line `first`, and what to do."""
    opened, closed = _last_quote(lines, first, delimiter)
    if not closed and ("end of data" in message or "limit" in message):
        start = lines[opened - 1].strip()[:40]
        return f"{path}:{opened}: not CSV: the quote that opens here is never closed ({start}...); close or remove it"
    if "limit" in message:
        return (
            f"{path}:{first}: a cell of more than {_LIMIT:,} characters begins here; shorten it, or give the table "
            "as .tsv or .jsonl"
        )
    if "new-line" in message:
        return f"{path}:{first}: not CSV: a carriage return in a cell without quotes; lines end with a newline"
    if "expected after" in message:
        return f"{path}:{opened}: not CSV: text after a closing quote ({message}); write a quote inside quotes twice"
    return f"{path}:{first}: not CSV ({message})"


def _last_quote(lines: Sequence[str], first: int, delimiter: str) -> tuple[int, bool]:
    """The line in which the last quoted cell of a row begins, and whether it is closed."""
    opened, inside = first, False
    for number in range(first, len(lines) + 1):
        line, place = lines[number - 1], 0
        starts_cell = not inside
        while place < len(line):
            character = line[place]
            if inside and character == '"':
                if line[place + 1 : place + 2] == '"':
                    place += 1
                else:
                    inside = False
            elif not inside and character == '"' and starts_cell:
                opened, inside = number, True
            starts_cell = not inside and character == delimiter
            place += 1
        if not inside:
            return opened, True
    return opened, False
