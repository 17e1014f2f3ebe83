"""Seeded changes of bytes: what transmission, editors, other programs and malice do to a file."""

from __future__ import annotations

import random
from collections.abc import Sequence

TOKENS = (
    *(b"\n", b"\r\n", b"\r", b"\t", b",", b'"', b'""', b"'", b"\\", b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf"),
    *(b"\xe2\x80\xa8", b"\x0b", b"\xc3\xa9", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\\ud800", b"[SEP]", b"[PAD]"),
    *(b"0", b"-1", b"1e999", b"-1e999", b"1" * 400, b"9" * 5000, b"0.5", b"NaN", b"Infinity", b"null", b"true"),
    *(b"{}", b"[]", b"[" * 100, b'{"a":' * 100, b"[" * 100_000, b"}", b"]", b":", b'"boxes"', b'"files"', b'"step"'),
    *(b"18446744073709551615", b"9223372036854775807", b"-9223372036854775808", b"4294967296", b"../../x", b" " * 50),
)
"""What readers stumble over: line ends, quotes, byte-order marks, half characters, huge and endless JSON."""


def mutated(generator: random.Random, samples: Sequence[bytes]) -> bytes:
    """One of the samples after one to four changes."""
    content = bytearray(generator.choice(samples))
    for _ in range(generator.randint(1, 4)):
        _CHANGES[generator.randrange(len(_CHANGES))](generator, content, samples)
    return bytes(content)


def _place(generator: random.Random, content: bytearray) -> int:
    return generator.randrange(len(content) + 1)


def _flip(generator: random.Random, content: bytearray, samples: Sequence[bytes]) -> None:
    if content:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)


def _replace(generator: random.Random, content: bytearray, samples: Sequence[bytes]) -> None:
    if content:
        content[generator.randrange(len(content))] = generator.randrange(256)


def _insert(generator: random.Random, content: bytearray, samples: Sequence[bytes]) -> None:
    place = _place(generator, content)
    content[place:place] = generator.choice(TOKENS)


def _overwrite(generator: random.Random, content: bytearray, samples: Sequence[bytes]) -> None:
    place, token = _place(generator, content), generator.choice(TOKENS)
    content[place : place + len(token)] = token


def _delete(generator: random.Random, content: bytearray, samples: Sequence[bytes]) -> None:
    place = _place(generator, content)
    del content[place : place + generator.randint(1, 20)]


def _repeat(generator: random.Random, content: bytearray, samples: Sequence[bytes]) -> None:
    place = _place(generator, content)
    content[place:place] = content[place : place + generator.randint(1, 60)]


def _truncate(generator: random.Random, content: bytearray, samples: Sequence[bytes]) -> None:
    del content[_place(generator, content) :]


def _splice(generator: random.Random, content: bytearray, samples: Sequence[bytes]) -> None:
    other = generator.choice(samples)
    content[_place(generator, content) :] = other[generator.randrange(len(other) + 1) :]


_CHANGES = (_flip, _flip, _replace, _insert, _insert, _overwrite, _delete, _repeat, _truncate, _splice)
