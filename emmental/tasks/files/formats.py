"""The rows of a file, a function for each format: tab-separated, CSV, JSON lines, parquet.

The same rows give the same cells in every format.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from emmental.errors import UserError
from emmental.tasks.files.content import is_packed, read_content
from emmental.tasks.task import listed

Row = tuple[int, list[str]]
"""Line or row, counted from 1, and its cells."""

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_LIMIT = csv.field_size_limit()


def recognised_delimiter(header: str, expected: str, columns: Collection[str]) -> str:
    """The delimiter that splits the header into names with at least one of `columns`; else `expected`."""
    for delimiter in (expected, *DELIMITERS):
        if any(name.strip().strip('"') in columns for name in header.split(delimiter)):
            return delimiter
    return expected


def tab_separated(lines: Sequence[str]) -> list[Row]:
    """Rows with their line numbers. Empty lines are rows too, except at the end of a table of several columns."""
    end = len(lines)
    while end > 1 and not lines[end - 1] and "\t" in lines[0]:
        end -= 1
    return [(number, line.split("\t")) for number, line in enumerate(lines[:end], start=1)]


def lines_with_quoted_cells(lines: Sequence[str]) -> list[str] | None:
    r"""The lines of a tab-separated file whose quotes enclose cells; None if quotes in it are ordinary text.

    They enclose cells if all column names are in quotes (R, or pandas with `quoting`), or if exactly the cells are in
    quotes that need it (pandas). R's `\"` for a quote inside a cell becomes `""`.
    """
    if not any('"' in line for line in lines):
        return None
    if all(len(name) > 1 and name[0] == name[-1] == '"' for name in lines[0].split("\t")):
        inner = [cell[1:-1].replace('\\"', "") for line in lines if '\\"' in line for cell in line.split("\t")]
        return [line.replace('\\"', '""') for line in lines] if inner and '""' not in " ".join(inner) else list(lines)
    try:
        rows = list(csv.reader((line + "\n" for line in lines), delimiter="\t", strict=True))
    except csv.Error:
        return None
    width = len(rows[0])
    is_table = all(line.count("\t") + 1 == width for line in lines)  # also with quotes that are text
    if any(len(row) != width for row in rows) or (is_table and len(rows) < len(lines)):
        return None
    if not any('"' in cell and any(map(str.isalnum, cell)) for row in rows for cell in row):
        return None
    written = io.StringIO()
    csv.writer(written, delimiter="\t", lineterminator="\n").writerows(rows)
    return list(lines) if written.getvalue().removesuffix("\n").split("\n") == list(lines) else None


def quoted(path: Path, lines: Sequence[str], delimiter: str) -> tuple[list[Row], int]:
    """Rows of a CSV file, each with the number of its first line, and the number of skipped blank lines.

    Blank lines after the last row do not count. In a table of one column a blank line is an empty cell.

    Raises:
        UserError: a quote that is not closed, text after a closed quote, a carriage return in a cell without quotes,
            a cell of more characters than Python's `csv` reads, a line of nothing but delimiters.
    """
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    rows: list[Row] = []
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


def begins_as_json(line: str) -> bool:
    """Whether a line is a JSON object: the first line of JSON lines, whatever the file is called."""
    try:
        return line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def json_table(path: Path, lines: Sequence[str], keys: Collection[str]) -> tuple[list[str], list[Row], list[str]]:
    """Header, rows, and all columns of the first object. The header's are those in `keys`. Blank lines are skipped.

    Raises:
        UserError: no JSON, no object, a key twice, lines with other keys than the first one, or a value that is no
            cell (see `cell_of`); names file and line.
    """
    header: list[str] | None = None
    first: tuple[int, list[str]] = (1, [])
    rows = []
    for line, record in _objects(path, lines):
        names = [name for name in record if name in keys]
        if header is None:
            header, first = names, (line, list(record))
        if set(names) != set(header):
            raise UserError(
                f"{path}:{line}: its columns are {listed(record)}; those of line {first[0]} are "
                f"{listed(first[1])}; every line must have the same ones of {', '.join(keys)}"
            )
        rows.append((line, [cell_of(record[name], f"{path}:{line}", name) for name in header]))
    return header or [], rows, first[1]


def _objects(path: Path, lines: Sequence[str]) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_without_repetition)
        except _RepeatedKeyError as error:
            raise UserError(f"{path}:{number}: {error.args[0]!r} occurs twice in one object") from None
        except (ValueError, RecursionError):
            whole = "; the file is one JSON array" if number == 1 and line.lstrip().startswith("[") else ""
            raise UserError(f"{path}:{number}: not JSON; one object a line is expected{whole}") from None
        if not isinstance(record, dict):
            whole = "; the file is one JSON array" if isinstance(record, list) else ""
            raise UserError(f"{path}:{number}: a JSON object is expected{whole}, write one object a line")
        yield number, record


class _RepeatedKeyError(Exception):
    """An object has a key twice."""


def _without_repetition(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return record


def parquet_table(path: Path, keys: Collection[str]) -> tuple[list[str], list[Row], list[str], dict[str, list[str]]]:
    """Header, rows numbered from 1, all columns, and the class names of columns of integers (see `_class_names`).

    Only columns in `keys` are read, in the order of the file.

    Raises:
        UserError: pyarrow is missing, the file is not parquet, it has none of `keys` or one twice, or a value is no
            cell (see `cell_of`); names file and row.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: parquet needs pyarrow; install it with `pip install pyarrow`") from None
    try:
        file = parquet.ParquetFile(io.BytesIO(read_content(path, False)) if is_packed(path) else path)
        every = file.schema_arrow.names
        header = [name for name in every if name in keys]
        for name in header:
            if every.count(name) > 1:
                raise UserError(f"{path}: more than one column named {name!r}")
        table = file.read(header)
        columns = {name: table.column(name).to_pylist() for name in header}
    except (pyarrow.ArrowException, OSError) as error:
        read_content(path, is_text=False)
        raise UserError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())[:200]})") from None
    if not columns:
        raise UserError(f"{path}: no column named {' or '.join(keys)}; the columns are {listed(every)}")
    rows = []
    for number, values in enumerate(zip(*columns.values(), strict=True), start=1):
        place = f"{path}:{number}"
        rows.append((number, [cell_of(value, place, name) for value, name in zip(values, header, strict=True)]))
    return header, rows, every, _class_names(file.schema_arrow.metadata or {})


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> names of the classes 0, 1, ..., as the library `datasets` stores them in a schema."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        named = {name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}
    return {
        name: list(map(str.strip, names))
        for name, names in named.items()
        if isinstance(names, list) and all(isinstance(each, str) for each in names) and len(set(names)) == len(names)
    }


def cell_of(value: object, place: str, name: str) -> str:
    """Strings unchanged; numbers as Python writes them; `true` and `false`.

    Args:
        value: the value in the file.
        place: file and line, for messages.
        name: name of the column.

    Raises:
        UserError: null, NaN, a list (several labels), another type, or half of a surrogate pair.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        spelled = "null" if value is None else "NaN"
        raise UserError(f"{place}: {name!r} is missing ({spelled}); it must be a string or a number")
    if isinstance(value, int | float | Decimal):
        return str(value)
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{place}: {name!r} has half of a surrogate pair, which is no character")
        return value
    if isinstance(value, list | tuple):
        raise UserError(f"{place}: {name!r} is a list; a row has one text and one label, several are not supported")
    raise UserError(f"{place}: {name!r} must be a string or a number")
