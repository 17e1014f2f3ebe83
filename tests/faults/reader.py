"""A reader and the sound inputs that are mutated for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Reader:
    """A reader and what it is fed.

    Attributes:
        name: for the table.
        samples: sound inputs.
        read: reads one mutated input.
        share: of all inputs, relative to the others; slow readers get fewer.
    """

    name: str
    samples: list[bytes]
    read: Callable[[bytes], object]
    share: int


def written(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A reader of a file as one of its content."""

    def write_and_read(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return write_and_read
