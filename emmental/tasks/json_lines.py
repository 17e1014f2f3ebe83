"""Reads tables in JSON lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from emmental.errors import UserError
from emmental.tasks.cells import Row, cell_of
from emmental.tasks.task import listed


def json_table(path: Path, lines: Sequence[str], keys: Collection[str]) -> tuple[list[str], list[Row]]:
    """Header and rows. Columns are the keys of the first object that are in `keys`. Blank lines are skipped.

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
    return header or [], rows


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
