"""Reads the texts that a model is pruned on: strings, pairs, or queries with documents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emmental.data.texts import Text, read_texts
from emmental.errors import UserError, names_near
from emmental.task_heads import PAIR, TEXT, Scores, SeveralLabels, TaskHead
from emmental.tasks.files import read_table, table_format
from emmental.tasks.files.content import read_lines
from emmental.tasks.label_forms import ListCells
from emmental.tasks.labels import is_list
from emmental.tasks.wording import listed

FIRST = ("sentence1", "sentence", "text", "query", "question")
SECOND = ("sentence2", "documents", "document", "context")
"""Columns that are looked for if the user names none."""
_RECORDS = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Columns:
    """The user's settings for a file of texts; None: recognised, or not read.

    Attributes:
        text, pair, label: names of columns.
        delimiter, encoding: of `.csv` and `.tsv`.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    delimiter: str | None = None
    encoding: str | None = None


def read_inputs(
    source: str, head: TaskHead, columns: Columns, flag: str = "--texts"
) -> tuple[list[Text], list | None]:
    """The inputs of a file, and their labels if a label column is named.

    `.csv`, `.tsv`, `.jsonl`, `.json` and `.parquet` have columns; any other file has a text a line. If a head takes no
    pairs, the texts of both columns are inputs of their own.

    Raises:
        UserError: no such file, a missing column, a value of another type, or texts of a shape that the head does not
            take.
    """
    path = Path(source)
    if not path.is_file():
        near = names_near(source, files=True)
        raise UserError(f"{flag} {source} is not a file" + (f"; {near}" if near else ""))
    if path.suffix.lower() not in (".csv", ".tsv", *_RECORDS):
        if TEXT not in head.shapes:
            raise UserError(f"{flag} {source} has single strings; {head.title} need {' or '.join(head.shapes)}")
        if columns.label is not None:
            raise UserError(f"{flag} {source} has no columns; --label_column needs .csv, .tsv, .jsonl or .parquet")
        return [text for text in read_texts(source, flag) if text.strip()], None
    rows = _records(path) if path.suffix.lower() in _RECORDS else _cells(path, columns)
    texts: list[Text] = []
    labels: list[Any] = []
    for place, row in rows:
        first = _column(place, row, columns.text, FIRST, "--text_column")
        second = _column(place, row, columns.pair, SECOND, "--text_pair_column", required=False)
        inputs = _inputs(place, row, first, second, head)
        texts += inputs
        if columns.label is not None:
            _column(place, row, columns.label, (), "--label_column")
            labels += [_label(place, row[columns.label], head)] * len(inputs)
    return texts, labels if columns.label is not None else None


def _inputs(place: str, row: dict[str, Any], first: str, second: str | None, head: TaskHead) -> list[Text]:
    text = _string(place, first, row[first])
    if second is None:
        if TEXT not in head.shapes:
            needed = " or ".join(head.shapes)
            raise UserError(f"{place}: {head.title} need {needed}; --text_column, --text_pair_column name the columns")
        return [text]
    if isinstance(row[second], list):
        return [(text, [_string(place, second, each) for each in row[second]])]
    other = _string(place, second, row[second])
    return [(text, other)] if PAIR in head.shapes else [text, other]


def _label(place: str, value: Any, head: TaskHead) -> Any:
    """A label as `emmental.prune` takes it: numbers in cells become numbers."""
    if isinstance(head, SeveralLabels):
        if isinstance(value, str) and is_list(value.strip()):
            return ListCells().parts(place, value.strip())
        if not isinstance(value, list):
            raise UserError(f'{place}: the label is {value!r:.60}; a list of labels such as ["a", "b"] is accepted')
        return value
    if isinstance(value, str) and value not in head.names:
        try:
            return float(value) if isinstance(head, Scores) else int(value)
        except ValueError:
            pass
    return value


def _column(
    place: str, row: dict[str, Any], named: str | None, known: Sequence[str], flag: str, required: bool = True
) -> str | None:
    found = named if named in row else None if named else next((name for name in known if name in row), None)
    if found is None and (required or named):
        wanted = repr(named) if named else " or ".join(known)
        raise UserError(f"{place}: no column {wanted}; the columns are {listed(row)} ({flag} names another)")
    return found


def _string(place: str, name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{place}: {name!r} is {value!r:.60}; a string is accepted")
    return str(value)


def _cells(path: Path, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    keys = [name for name in (columns.text, columns.pair, columns.label) if name] + [*FIRST, *SECOND]
    table = read_table(path, table_format(path), keys=keys, delimiter=columns.delimiter, encoding=columns.encoding)
    for line, cells in table.rows:
        yield f"{path}:{line}", dict(zip(table.header or (), cells, strict=False))


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path)
        return
    for number, line in enumerate(read_lines(path)[0], start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: one JSON object a line is expected")
        yield f"{path}:{number}", record


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: parquet needs pyarrow; install it with `pip install pyarrow`") from None
    try:
        rows = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())[:200]})") from None
    yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, start=1))
