"""Lists of names in messages."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST_LIST = 10


def listed(names: Iterable[object]) -> str:
    """Names with commas between them, for a message of one line. Long lists are cut: "and 7 more"."""
    shown = [text if (text := " ".join(str(name).splitlines())).isprintable() else repr(text) for name in names]
    if len(shown) <= LONGEST_LIST:
        return ", ".join(shown)
    return f"{', '.join(shown[:LONGEST_LIST])} and {len(shown) - LONGEST_LIST} more"
