"""A value of JSON or parquet as the text of a cell."""

from __future__ import annotations

import math
from decimal import Decimal

from emmental.errors import UserError

Row = tuple[int, list[str]]
"""Line or row, counted from 1, and its cells."""


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
