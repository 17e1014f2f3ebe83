"""Reads tables as rows of cells with their line numbers: TSV, CSV, JSON lines, parquet.

The same rows give the same cells in every format.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emmental.errors import UserError
from emmental.tasks.files.content import PACKED, member_name, read_lines
from emmental.tasks.files.formats import (
    DELIMITERS,
    Row,
    begins_as_json,
    json_table,
    lines_with_quoted_cells,
    parquet_table,
    quoted,
    recognised_delimiter,
    tab_separated,
)
from emmental.tasks.wording import listed

FORMATS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
"""Suffix of a file's name -> its format."""
TEXT_LINES = "lines"
"""The format of text without columns: each line that is not blank is a row."""
QUOTED_TSV = "quoted tsv"
"""The format of a tab-separated file whose quotes enclose cells, as pandas and R write them."""
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
"""A first line with which a file tells Excel its delimiter."""
_BROKEN_SHOWN = 5


@dataclass(frozen=True)
class Table:
    """Rows of one file.

    Attributes:
        path: the file, for messages.
        header: column names, or None where the file has no header line.
        rows: `(line, cells)`, the line (parquet: row) counted from 1; if there is a header, every row has as many
            cells.
        notes: for the user, on how it was read, a line each.
        kind, delimiter: how it was read: its format, and what separates the cells of a text.
        every: all columns of the file, of which `header` may have only those that were asked for.
        class_names: column -> names of the classes 0, 1, ..., where the file names them.
    """

    path: Path
    header: list[str] | None
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    kind: str = ""
    delimiter: str | None = None
    every: list[str] = field(default_factory=list)
    class_names: dict[str, list[str]] = field(default_factory=dict)

    def column(self, column: int | str) -> int:
        """Position of a column given by position (-1: the last one) or by name.

        Raises:
            UserError: no column, or more than one, has that name; or the header has fewer columns.
        """
        if isinstance(column, str):
            return self._named_column(column)
        width = len(self.header) if self.header is not None else len(self.rows[0][1])
        if column >= width:
            raise UserError(f"{self.path}:1: {width} columns where at least {column + 1} are expected")
        return column % width

    def require(self, columns: Collection[str]) -> None:
        """Check that each of these columns is there once.

        Raises:
            UserError: columns are missing. The message names them, and the columns of the file.
        """
        missing = [name for name in columns if name not in (self.header or [])]
        if len(missing) > 1:
            raise UserError(f"{self.path}:1: no columns named {_all(missing)}; the columns are {self._names()}")
        for name in columns:
            self.column(name)

    def _names(self) -> str:
        return " ".join(listed(self.every or self.header or []).split())  # a quoted name may run over lines

    def _named_column(self, name: str) -> int:
        header = self.header or []
        if header.count(name) != 1:
            found = "no column" if name not in header else "more than one column"
            raise UserError(f"{self.path}:1: {found} named {name!r}; the columns are {self._names()}")
        return header.index(name)


def table_format(path: str | Path) -> str:
    """`"tsv"`, `"csv"`, `"jsonl"` or `"parquet"`, by the suffix of a file's name without `.gz` and the like.

    Raises:
        UserError: another suffix.
    """
    suffix = Path(member_name(Path(path))).suffix.lower()
    if suffix not in FORMATS:
        raise UserError(
            f"{path}: {suffix or 'no'} suffix where {', '.join(FORMATS)} are accepted, also with {', '.join(PACKED)}"
        )
    return FORMATS[suffix]


def read_table(
    path: str | Path,
    kind: str,
    has_header: bool = True,
    keys: Collection[str] = (),
    *,
    delimiter: str | None = None,
    encoding: str | None = None,
    skips_broken_rows: bool = False,
    as_found: bool = False,
    lists: Collection[str] = (),
) -> Table:
    """Read a whole file.

    Args:
        path: a file.
        kind: `"tsv"` (no quoting: `"` is an ordinary character), `"csv"` (quoted as CSV), `"jsonl"` (one object a
            line), `"parquet"`, or `TEXT_LINES`.
        has_header: whether the first line of a TSV holds the column names.
        keys: the columns that are wanted. Of JSON lines and parquet only these are read; others may hold anything. The
            delimiter of a text is recognised by them.
        delimiter: what separates the cells of a text; None: a tab or a comma by the kind, or what splits the header.
        encoding: of a text, as Python names it; None: see `read_lines`.
        skips_broken_rows: skip, and count in the notes, lines of another width than the header.
        as_found: recognise what programs write under these names too: JSON lines called `.csv`, a first line `sep=;`,
            quotes of pandas and R in a `.tsv`, row names of R.
        lists: columns of JSON lines and parquet that may hold lists; their cells are JSON.

    Raises:
        UserError: what `read_lines`, `quoted`, `json_table` and `parquet_table` refuse, a row with more or fewer cells
            than the header, a second header; one line naming file and line.
    """
    path = Path(path)
    if kind == "parquet":
        return _parquet(path, keys, lists)
    if delimiter is not None and len(delimiter) != 1:
        raise UserError(f"{path}: --delimiter accepts one character, not {delimiter!r}")
    lines, notes = read_lines(path, encoding)
    if kind == TEXT_LINES:
        return _lines_of_text(path, lines, notes)
    if as_found and begins_as_json(lines[0]) and table_format(path) != "jsonl":
        notes.append(f"{path}: it holds JSON lines, and is read as such")
        kind = "jsonl"
    if kind == "jsonl":
        header, rows, every = json_table(path, lines, keys, lists)
        _refuse_second_header(path, header, rows, keys)
        return Table(path, header, rows, notes, kind, None, every)
    separator_line = _SEPARATOR_LINE.fullmatch(lines[0]) if as_found and len(lines) > 1 else None
    above = 0 if separator_line is None else 1
    if separator_line:
        lines, delimiter = ["", *lines[1:]], delimiter or separator_line[1]
    if "\r" in lines[above]:
        raise UserError(f"{path}:1: a carriage return inside the line; end all lines with a newline")
    if as_found and kind in ("tsv", QUOTED_TSV):
        kind, lines = _quoting_of(path, kind, lines, notes)
    rows, found = _text_rows(path, lines, kind, keys if has_header else (), delimiter, above, notes)
    if not has_header:
        return Table(path, None, rows, notes, kind, found)
    header = [name.strip() for name in rows.pop(0)[1]]
    if as_found and _have_row_names(rows, len(header)):
        notes.append(f"{path}: its first column has no name in the header, as R writes row names")
        header = ["", *header]
    rows = _of_one_width(path, header, rows, notes if skips_broken_rows else None)
    if not rows:
        raise UserError(f"{path}:1: a header and no examples")
    if kind == "tsv" and (odd := [line for line, cells in rows if any("\r" in cell for cell in cells)]):
        notes.append(f"{path}:{odd[0]}: a carriage return inside a line is text ({len(odd)} lines have one)")
    _refuse_second_header(path, header, rows, keys)
    return Table(path, header, rows, notes, kind, found)


def _lines_of_text(path: Path, lines: Sequence[str], notes: list[str]) -> Table:
    rows = [(number, [line.strip()]) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise UserError(f"{path}: no text")
    return Table(path, None, rows, notes, TEXT_LINES)


def _parquet(path: Path, keys: Collection[str], lists: Collection[str]) -> Table:
    header, rows, every, names = parquet_table(path, keys, lists)
    if not rows:
        raise UserError(f"{path}: no rows")
    _refuse_second_header(path, header, rows, keys)
    return Table(path, header, rows, [], "parquet", None, every, names)


def _refuse_second_header(path: Path, header: list[str], rows: list[Row], keys: Collection[str]) -> None:
    """Refuse a second header among the rows, in any case: somebody joined files."""
    names = [name.casefold() for name in header]
    again = next((line for line, cells in rows if [cell.strip().casefold() for cell in cells] == names), None)
    if again is not None and set(keys) & set(header):
        raise UserError(f"{path}:{again}: the header occurs again; remove this line")


def _have_row_names(rows: list[Row], width: int) -> bool:
    """Whether each row begins with one more cell than the header has, a number of its own."""
    names = {cells[0] for _, cells in rows if len(cells) == width + 1 and cells[0].isdecimal()}
    return bool(rows) and len(names) == len(rows)


def _quoting_of(path: Path, kind: str, lines: list[str], notes: list[str]) -> tuple[str, list[str]]:
    """`QUOTED_TSV` and the lines if quotes enclose cells; otherwise what was given. Either is said in the notes."""
    plain = lines_with_quoted_cells(lines)
    if plain is not None:
        notes.append(f"{path}: its quotes enclose cells, as pandas and R write them, and are no part of the text")
        return QUOTED_TSV, plain
    enclosed = sum(cell[:1] == cell[-1:] == '"' for line in lines if '"' in line for cell in line.split("\t"))
    if enclosed:
        notes.append(f"{path}: quotes are part of the text, as in every .tsv ({enclosed} cells are in quotes)")
    return kind, lines


def _text_rows(
    path: Path,
    lines: Sequence[str],
    kind: str,
    columns: Collection[str],
    delimiter: str | None,
    above: int,
    notes: list[str],
) -> tuple[list[Row], str]:
    """All rows, and what separates their cells. The first `above` lines are empty: they were read already."""
    expected = "," if kind == "csv" else "\t"
    found = delimiter or recognised_delimiter(lines[above], expected, columns)
    if found != expected and delimiter is None:
        notes.append(f"{path}: its cells are separated by {DELIMITERS[found]}")
    if kind == "tsv" and found == "\t":
        return tab_separated(lines)[above:], found
    rows, skipped = quoted(path, lines, found)
    if skipped > above:
        notes.append(f"{path}: {skipped - above} blank line{'s' * (skipped - above > 1)} skipped")
    return rows, found


def _of_one_width(path: Path, header: list[str], rows: list[Row], broken_notes: list[str] | None) -> list[Row]:
    """The rows with as many cells as the header. Others are refused, or skipped and counted in the notes."""
    kept, broken = [], []
    for line, cells in rows:
        if len(cells) != len(header) and broken_notes is None:
            inside = (
                "; a carriage return inside the line does not end it" if any("\r" in cell for cell in cells) else ""
            )
            raise UserError(f"{path}:{line}: {len(cells)} columns where the header has {len(header)}{inside}")
        if len(cells) == len(header):
            kept.append((line, cells))
        else:
            broken.append(line)
    if broken and broken_notes is not None:
        more = ", ..." if len(broken) > _BROKEN_SHOWN else ""
        broken_notes.append(
            f"{path}: {len(broken)} lines skipped; they are parts of rows broken over several lines "
            f"(lines {', '.join(map(str, broken[:_BROKEN_SHOWN]))}{more})"
        )
    return kept


def _all(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
