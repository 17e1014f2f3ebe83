"""The text of a file: finds its encoding, and the character that ends its lines."""

from __future__ import annotations

import codecs
from pathlib import Path

from emmental.errors import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks. That of UTF-32 begins with that of UTF-16, so it is tried first."""


def read_lines(path: Path, encoding: str | None = None) -> tuple[list[str], list[str]]:
    """The lines of a file without their ends, and notes for the user on how it was read.

    A newline, or a carriage return and a newline, ends a line. In a file without newlines, carriage returns end the
    lines. Other separators (U+2028, vertical tabs) are ordinary characters. The last line needs no end.

    Args:
        path: UTF-8, with or without a byte-order mark, or UTF-16 or UTF-32, which are detected.
        encoding: Python's name of any other encoding.

    Raises:
        UserError: the file is empty, or has bytes that are invalid in its encoding.
    """
    data = path.read_bytes()
    found = encoding or _recognised(data)
    notes = [] if encoding or found == "utf-8-sig" else [f"{path}: read as {found.upper()}"]
    text = _decoded(path, data, found).removeprefix("\ufeff")
    if not text.strip("\r\n"):
        raise UserError(f"{path}:1: the file is empty")
    if "\n" not in text and "\r" in text.rstrip("\r"):
        notes.append(f"{path}: its lines end with a carriage return alone")
        text = text.replace("\r", "\n")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")], notes


def _recognised(data: bytes) -> str:
    for mark, name in _MARKS:
        if data.startswith(mark):
            return name
    start = data[:4096]
    if len(start) >= 4:
        # In UTF-16 every second byte of a Latin text is zero. UTF-8 has no zero bytes.
        if start[1::2].count(0) > len(start) // 4 and not start[::2].count(0):
            return "utf-16-le"
        if start[::2].count(0) > len(start) // 4 and not start[1::2].count(0):
            return "utf-16-be"
    return "utf-8-sig"


def _decoded(path: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if encoding != "utf-8-sig":
            raise UserError(f"{path}:{line}: not {encoding.upper()} ({error.reason}); see --encoding") from None
        byte = error.object[error.start]
        line = error.object.count(b"\n", 0, error.start) + 1  # the error counts bytes without the byte-order mark
        likely = "cp1252" if any(0x80 <= each < 0xA0 for each in data) else "latin-1"
        raise UserError(
            f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; if the text is in Latin-1 or Windows-1252, give "
            f"--encoding {likely}"
        ) from None
