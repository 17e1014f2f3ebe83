"""Text tables as rows of cells with their line numbers: tab-separated, CSV and JSON lines.

Only the newline character ends a line: U+2028, vertical tabs and the like are ordinary characters of a sentence. A
carriage return before a newline belongs to the line end.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from emmental.errors import UserError

_FORMATS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}


@dataclass(frozen=True)
class Table:
    """Rows of one file.

    Attributes:
        path: the file, for messages.
        header: column names, or None where the file has no header line.
        rows: `(line, cells)`, the line counted from 1; where there is a header, every row has as many cells as it.
    """

    path: Path
    header: list[str] | None
    rows: list[tuple[int, list[str]]]

    def column(self, column: int | str) -> int:
        """Position of a column given by position (-1: the last one) or by name.

        Raises:
            UserError: no column, or more than one, has that name; or the position is beyond the header.
        """
        if isinstance(column, str):
            return self._named_column(column)
        width = len(self.header) if self.header is not None else len(self.rows[0][1])
        if column >= width:
            raise UserError(f"{self.path}:1: {width} columns where at least {column + 1} are expected")
        return column % width

    def _named_column(self, name: str) -> int:
        header = self.header or []
        if header.count(name) != 1:
            found = "no column" if name not in header else "more than one column"
            columns = " ".join(", ".join(header).split())  # a quoted name may run over lines
            raise UserError(f"{self.path}:1: {found} named {name!r}; the columns are {columns}")
        return header.index(name)


def table_format(path: str | Path) -> str:
    """`"tsv"`, `"csv"` or `"jsonl"`, by the suffix of a file's name.

    Raises:
        UserError: another suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise UserError(f"{path}: {suffix or 'no'} suffix where {', '.join(_FORMATS)} are accepted")
    return _FORMATS[suffix]


def read_table(path: str | Path, kind: str, has_header: bool = True, keys: Collection[str] = ()) -> Table:
    """Read a whole file.

    Args:
        path: UTF-8, with or without a byte-order mark.
        kind: `"tsv"` (no quoting: `"` is an ordinary character), `"csv"` (quoted as CSV) or `"jsonl"` (one object a
            line).
        has_header: whether the first line of a TSV holds the column names.
        keys: which keys of JSON lines become columns, as far as the first line has them; others may hold anything.

    Raises:
        UserError: invalid UTF-8, an empty file, a row with more or fewer cells than the header, broken quoting or
            JSON; one line naming file and line.
    """
    path = Path(path)
    lines = _lines(path)
    if kind == "jsonl":
        return _json_table(path, lines, keys)
    rows = _csv_rows(path, lines) if kind == "csv" else _tsv_rows(lines)
    if not has_header:
        return Table(path, None, rows)
    header = rows.pop(0)[1] if rows else []
    for line, cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{path}:{line}: {len(cells)} columns where the header has {len(header)}")
    if not rows:
        raise UserError(f"{path}:1: a header and no examples")
    return Table(path, [name.strip() for name in header], rows)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: byte 0x{error.object[error.start]:02x} is not UTF-8") from None
    text = text.rstrip("\r\n")
    if not text:
        raise UserError(f"{path}:1: the file is empty")
    return [line.removesuffix("\r") for line in text.split("\n")]


def _tsv_rows(lines: list[str]) -> list[tuple[int, list[str]]]:
    return [(number, line.split("\t")) for number, line in enumerate(lines, start=1)]


def _csv_rows(path: Path, lines: list[str]) -> list[tuple[int, list[str]]]:
    """Rows of a CSV file; a quoted cell may run over several lines, the row then counts from its first one."""
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for cells in reader:
            rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not CSV ({error})") from None
    return rows


def _json_table(path: Path, lines: list[str], keys: Collection[str]) -> Table:
    header: list[str] | None = None
    rows = []
    for line, record in _json_objects(path, lines):
        names = [name for name in record if name in keys]
        header = names if header is None else header
        for name in set(names) ^ set(header):
            raise UserError(f"{path}:{line}: {name!r} is in this line or in the first one, not in both")
        rows.append((line, [_json_cell(path, line, name, record[name]) for name in header]))
    return Table(path, header, rows)


def _json_objects(path: Path, lines: list[str]) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path}:{number}: not JSON; one object a line is expected") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: a JSON object is expected")
        yield number, record


def _json_cell(path: Path, line: int, name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{path}:{line}: {name!r} has half of a surrogate pair, which is no character")
        return value
    raise UserError(f"{path}:{line}: {name!r} must be a string or a number")
