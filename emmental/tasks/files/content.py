"""The content of a file: unpacks it, finds its encoding and its lines, or says what it is if it is no text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emmental.errors import UserError

PACKED = (".gz", ".zip", ".bz2", ".xz")
"""Suffixes after the suffix of the format: `data.csv.gz`."""
MOST_UNPACKED = 1 << 30
"""Most bytes that a packed file may unpack to. A few kilobytes could unpack to more than the memory."""
_ZIP = b"PK\x03\x04"
_OPENERS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_LFS = "a Git LFS pointer, not the file itself; `git lfs pull` fetches the file"
_WORKBOOK = "an Excel workbook; save it as CSV"
_WEB_PAGE = "a web page, not the file that was meant; download the file itself"
_OTHER_FORMATS = (
    (b"version https://git-lfs.github.com/spec/", _LFS),
    (b"PAR1", "a parquet file; name it .parquet"),
    (b"\xd0\xcf\x11\xe0", _WORKBOOK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (b"ARROW1", "an Arrow file; save it as parquet"),
    (b"%PDF", "a PDF"),
    (b"<!doctype html", _WEB_PAGE),
    (b"<html", _WEB_PAGE),
)
"""How files begin that are no tables in text, and what to say of them."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks. That of UTF-32 begins with that of UTF-16, so it is tried first."""


def what_it_is(start: bytes) -> str | None:
    """What a file is, and what to do, if its first bytes are not those of a table in text."""
    start = start.lstrip(b"\xef\xbb\xbf \r\n").lower() if start.lstrip().startswith(b"<") else start
    return next((words for magic, words in _OTHER_FORMATS if start.startswith(magic)), None)


def member_name(path: Path) -> str:
    """The name of the file inside a packed one, which tells its format: `a.csv` for `a.csv.gz` and for `a.zip`."""
    if path.suffix.lower() not in PACKED:
        return path.name
    if path.suffix.lower() == ".zip" and not Path(path.stem).suffix and path.is_file():
        with _unpacking(path), zipfile.ZipFile(path) as packed:
            return _only_member(path, packed).filename
    return path.stem


def is_packed(path: Path) -> bool:
    """Whether a file is packed, whatever its name is."""
    with open(path, "rb") as file:
        start = file.read(8)
    return start.startswith(_ZIP) or any(start.startswith(magic) for magic, _ in _OPENERS)


def read_content(path: Path, is_text: bool = True) -> bytes:
    """The bytes of a file. Files packed by gzip, bzip2, xz or, with one member, zip are unpacked.

    Args:
        path: the file.
        is_text: refuse what is no text; otherwise only a Git LFS pointer is refused.

    Raises:
        UserError: the file is damaged, unpacks to more than `MOST_UNPACKED`, is a zip of several files, or is of a
            format that cannot be read here; says what it is.
    """
    data = path.read_bytes()
    opener = next((each for magic, each in _OPENERS if data.startswith(magic)), None)
    with _unpacking(path):
        if opener is not None:
            with opener(io.BytesIO(data)) as file:
                data = _bounded(path, file)
        elif data.startswith(_ZIP):
            with zipfile.ZipFile(io.BytesIO(data)) as packed, packed.open(_only_member(path, packed)) as file:
                data = _bounded(path, file)
    words = what_it_is(data[:200])
    if words is not None and (is_text or words == _LFS):
        raise UserError(f"{path} is {words}")
    return data


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    """Turns the many errors of damaged archives into a `UserError`."""
    try:
        yield
    except _DAMAGED as error:
        raise UserError(f"{path} cannot be unpacked ({' '.join(str(error).split())[:200]})") from error


def _bounded(path: Path, file: io.IOBase) -> bytes:
    data = file.read(MOST_UNPACKED + 1)
    if len(data) > MOST_UNPACKED:
        raise UserError(f"{path} unpacks to more than {MOST_UNPACKED >> 20} MiB; unpack it and give the unpacked file")
    return data


def _only_member(path: Path, packed: zipfile.ZipFile) -> zipfile.ZipInfo:
    names = packed.namelist()
    if any(name.startswith("xl/") for name in names):
        raise UserError(f"{path} is {_WORKBOOK}")
    if "mimetype" in names or any(name.startswith("word/") for name in names):
        raise UserError(f"{path} is a document of an office program; save the table as CSV")
    files = [each for each in packed.infolist() if not each.is_dir() and not each.filename.startswith("__MACOSX/")]
    members = [each for each in files if not Path(each.filename).name.startswith(".")]
    if len(members) != 1:
        raise UserError(f"{path} holds {len(members)} files where one is expected; unpack it and give one file")
    return members[0]


def read_lines(path: Path, encoding: str | None = None) -> tuple[list[str], list[str]]:
    """The lines of a file without their ends, and notes for the user on how it was read.

    A newline, or a carriage return and a newline, ends a line. In a file without newlines, carriage returns end the
    lines. Other separators (U+2028, vertical tabs) are ordinary characters. The last line needs no end.

    Args:
        path: UTF-8, with or without a byte-order mark, or UTF-16 or UTF-32, which are detected; it may be packed.
        encoding: Python's name of any other encoding.

    Raises:
        UserError: see `read_content`; the file is empty, or has bytes that are invalid in its encoding.
    """
    data = read_content(path)
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
    except LookupError:
        known = "what Python knows (utf-8, latin-1, cp1252, ...)"
        raise UserError(f"{path}: --encoding accepts {known}, not {encoding!r}") from None
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
