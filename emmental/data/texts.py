"""Reads texts without labels from common kinds of files."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from emmental.errors import UserError
from emmental.tasks.files import FORMATS, read_table, table_format
from emmental.tasks.files.content import is_packed, member_name, read_content

logger = logging.getLogger(__name__)

STANDARD_INPUT = "-"
_TABLES = tuple(FORMATS)
_FIRST, _SECOND = ("sentence1", "sentence", "text"), "sentence2"

Text = str | tuple[str, str]
"""A sentence, or a pair of them."""


def read_texts(source: str, flag: str = "--input") -> Iterator[Text]:
    """The sentences, or pairs of sentences, in a file.

    Args:
        source: a table with a header (.tsv, .csv, .jsonl, .json, .parquet: column `sentence1`, `sentence` or `text`,
            and for pairs `sentence2`); any other file as UTF-8 text, a sentence a line; packed ones
            are unpacked; `-`: standard input, as text.
        flag: that names the file, for messages.

    Raises:
        UserError: no such file, not UTF-8, a carriage return inside a line of text, a table without such a column;
            names file and line.
    """
    if source == STANDARD_INPUT:
        return _lines(sys.stdin.buffer, "standard input")
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{flag} {source} is not a file; it accepts text, {', '.join(_TABLES)}, or - (standard input)")
    if Path(member_name(path)).suffix.lower() in _TABLES:
        return iter(_table_texts(path))
    return _lines(io.BytesIO(read_content(path)), str(path)) if is_packed(path) else _file_lines(path)


def _table_texts(path: Path) -> list[Text]:
    table = read_table(path, table_format(path), keys=(*_FIRST, _SECOND), as_found=True)
    for note in table.notes:
        logger.warning("%s", note)
    header = table.header or []
    first = next((name for name in _FIRST if name in header), _FIRST[0])
    column = table.column(first)
    if _SECOND not in header:
        return [cells[column] for _, cells in table.rows]
    other = table.column(_SECOND)
    return [(cells[column], cells[other]) for _, cells in table.rows]


def _file_lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        yield from _lines(file, str(path))


def _lines(file: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{name}:{number}: byte 0x{error.object[error.start]:02x} is not UTF-8") from None
        if "\r" in text:
            raise UserError(f"{name}:{number}: a carriage return inside the line; end all lines with a newline")
        yield text
