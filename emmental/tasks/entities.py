"""Entities in a sentence: runs of tokens with one label, and how many of them two labellings share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

OUTSIDE = "O"
_BEGINS, _INSIDE = ("B", "S", "U"), ("I", "E", "L", "M")
"""First letters of BIO and BIOES tags. S and U are entities of one token, E and L end one."""

Entity = tuple[int, int, str]
"""First token, token after the last one, and kind."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities that the tags of one sentence describe.

    `B-PER` begins an entity, and `I-PER` goes on with it, or begins one if no entity of that kind is open. Tags
    without such a letter are kinds themselves: equal neighbours are one entity. `O` is outside of all entities.
    """
    found: set[Entity] = set()
    start, open_kind = 0, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        letter, dash, rest = tag.partition("-")
        known = bool(dash) and letter in (*_BEGINS, *_INSIDE)
        kind = "" if tag == OUTSIDE else rest if known else tag
        if open_kind and (kind != open_kind or (known and letter in _BEGINS)):
            found.add((start, place, open_kind))
            open_kind = ""
        if kind and not open_kind:
            start, open_kind = place, kind
    return found


def shared_entities(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> float:
    """F1 of exact matches, over all sentences: 2 x shared / (entities of the first + of the second); 1 if none."""
    shared = total = 0
    for first, second in pairs:
        one, other = entities(first), entities(second)
        shared += len(one & other)
        total += len(one) + len(other)
    return 2 * shared / total if total else 1.0
