"""Stores positions of non-zeros in few bits: gaps, entropy-coded with rANS, or a bitmap if there are many.

rANS after Duda 2013 (arXiv 1311.2540), interleaved: symbol i belongs to lane i mod L, each lane has a 32-bit state,
and NumPy decodes all lanes of a step at once. States stay in [2^16, 2^32) and move 16-bit words in and out.

A gap g (zeros before a non-zero) is floor(g / 255) symbols 255 and one symbol g mod 255. Their frequencies are
measured for each matrix and stored in units of 2^-14. With independent non-zeros of density p, gaps are geometric, and
the code costs H(p) bits a weight and, for some ten thousand non-zeros, about 3 % more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from emmental.errors import UserError

ESCAPE = 255
_PRECISION = 14
_TOTAL = 1 << _PRECISION
_LOWEST = 1 << 16
_SYMBOLS_PER_LANE = 256
_MOST_LANES = 4096
_BITMAP_GAIN = 0.8
"""Gaps are used if they take less than this share of a bitmap's bytes, because decoding them takes longer."""


class PositionCode(NamedTuple):
    """Coded positions.

    Attributes:
        kind: gaps or bitmap.
        symbols: number of coded symbols; 0 for a bitmap.
        table: (alphabet,) uint16 frequencies that sum to 2^14; empty for a bitmap.
        states: (lanes,) uint32 states that decoding starts from; empty for a bitmap.
        data: uint16 words of the lanes, or uint8 bits, first position highest.
    """

    kind: str
    symbols: int
    table: np.ndarray
    states: np.ndarray
    data: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.table.nbytes + self.states.nbytes + self.data.nbytes


def entropy_bits(nonzeros: int, size: int) -> float:
    """The entropy size * H(nonzeros / size): the fewest bits for independent positions, on average."""
    if nonzeros in (0, size):
        return 0.0
    p = nonzeros / size
    return -size * (p * np.log2(p) + (1 - p) * np.log2(1 - p))


def encode_positions(positions: np.ndarray, size: int) -> PositionCode:
    """Code ascending positions.

    Args:
        positions: (m,) distinct integers in [0, size), ascending.
        size: number of weights.
    """
    gaps = np.diff(positions.astype(np.int64), prepend=-1) - 1
    escapes = gaps // ESCAPE
    symbols = np.full(int(escapes.sum()) + len(gaps), ESCAPE, dtype=np.uint8)
    symbols[np.cumsum(escapes + 1) - 1] = gaps % ESCAPE
    coded = PositionCode("gaps", len(symbols), *_encode_symbols(symbols))
    bitmap_size = (size + 7) // 8
    if coded.nbytes < _BITMAP_GAIN * bitmap_size or coded.data.size == 0:
        return coded
    bits = np.zeros(size, dtype=bool)
    bits[positions] = True
    nothing = np.empty(0, np.uint16), np.empty(0, np.uint32)
    return PositionCode("bitmap", 0, *nothing, np.packbits(bits))


def decode_positions(code: PositionCode, nonzeros: int, size: int) -> np.ndarray:
    """The inverse of `encode_positions`.

    Returns:
        (nonzeros,) int64, ascending.

    Raises:
        UserError: the code is not one of `nonzeros` positions in [0, size). No array is larger than that.
    """
    if not 0 <= nonzeros <= size:
        raise UserError(f"{nonzeros} non-zeros of {size} weights")
    if code.kind == "bitmap" and code.symbols == 0:
        return _decode_bitmap(code.data, nonzeros, size)
    if code.kind != "gaps" or not nonzeros <= code.symbols <= nonzeros + size // ESCAPE:
        raise UserError(f"{code.symbols} symbols of kind {code.kind!r} for {nonzeros} non-zeros of {size} weights")
    symbols = _decode_symbols(code)
    ends = symbols != ESCAPE
    if int(np.count_nonzero(ends)) != nonzeros or (len(symbols) and not ends[-1]):
        raise UserError(f"the gaps are not those of {nonzeros} non-zeros")
    steps = symbols.astype(np.int64) + ends
    reached = np.cumsum(steps)[ends] - 1
    if len(reached) and reached[-1] >= size:
        raise UserError(f"a position is {reached[-1]}, beyond {size} weights")
    return reached


def _decode_bitmap(data: np.ndarray, nonzeros: int, size: int) -> np.ndarray:
    if data.dtype != np.uint8 or data.shape != ((size + 7) // 8,):
        raise UserError(f"a bitmap of {size} weights has {(size + 7) // 8} bytes, not {data.nbytes}")
    bits = np.unpackbits(data)
    positions = np.flatnonzero(bits)
    if len(positions) != nonzeros or bits[size:].any():
        raise UserError(f"the bitmap has {len(positions)} non-zeros, not {nonzeros}")
    return positions


def _frequencies(symbols: np.ndarray) -> np.ndarray:
    """(alphabet,) uint16 that sum to 2^14, at least 1 for every symbol that occurs."""
    if not len(symbols):
        return np.empty(0, np.uint16)
    counts = np.bincount(symbols)
    present = counts > 0
    table = counts * (_TOTAL - int(present.sum())) // len(symbols) + present
    table[np.argmax(table)] += _TOTAL - int(table.sum())
    return table.astype(np.uint16)


def _lanes(symbols: int) -> int:
    return min(_MOST_LANES, -(-symbols // _SYMBOLS_PER_LANE))


def _encode_symbols(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    table = _frequencies(symbols)
    lanes = _lanes(len(symbols))
    if np.count_nonzero(table) <= 1:
        return table, np.full(min(lanes, 1), _LOWEST, np.uint32), np.empty(0, np.uint16)
    frequency, start = table.astype(np.uint64), (np.cumsum(table) - table).astype(np.uint64)
    states = np.full(lanes, _LOWEST, dtype=np.uint64)
    chunks = []
    for first in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        step = symbols[first : first + lanes]
        active = states[: len(step)]
        of_step = frequency[step]
        full = active >= of_step << np.uint64(32 - _PRECISION)
        chunks.append((active[full] & np.uint64(0xFFFF)).astype(np.uint16))
        active[full] >>= np.uint64(16)
        active[:] = (active // of_step << np.uint64(_PRECISION)) + active % of_step + start[step]
    return table, states.astype(np.uint32), np.concatenate(chunks[::-1])


def _decode_symbols(code: PositionCode) -> np.ndarray:
    """(symbols,) uint8. Every state must return to where encoding began, and all words must be used."""
    table, states, words = code.table.astype(np.int64), code.states.astype(np.uint32), code.data
    if code.symbols == 0:
        if len(table) or len(states) or len(words):
            raise UserError("a code of no symbols is not empty")
        return np.empty(0, np.uint8)
    if not 1 <= len(table) <= ESCAPE + 1 or table.sum() != _TOTAL:
        raise UserError("the frequencies of the gaps do not sum to 1")
    lanes = len(states)
    if np.count_nonzero(table) == 1:
        if lanes != 1 or states[0] != _LOWEST or len(words):
            raise UserError("the gaps are damaged")
        return np.full(code.symbols, len(table) - 1, np.uint8)
    if lanes != _lanes(code.symbols):
        raise UserError(f"{lanes} lanes for {code.symbols} symbols")
    symbol_at = np.repeat(np.arange(len(table), dtype=np.uint8), table)
    frequency_at = np.repeat(table, table).astype(np.uint32)
    offset_at = (np.arange(_TOTAL) - np.repeat(np.cumsum(table) - table, table)).astype(np.uint32)
    return _run_lanes(code.symbols, states.copy(), words, symbol_at, frequency_at, offset_at)


def _run_lanes(
    count: int,
    states: np.ndarray,
    words: np.ndarray,
    symbol_at: np.ndarray,
    frequency_at: np.ndarray,
    offset_at: np.ndarray,
) -> np.ndarray:
    symbols, lanes, used = np.empty(count, np.uint8), len(states), 0
    for first in range(0, count, lanes):
        active = states[: count - first]
        slot = active & np.uint32(_TOTAL - 1)
        symbols[first : first + lanes] = symbol_at[slot]
        active >>= np.uint32(_PRECISION)
        active *= frequency_at[slot]
        active += offset_at[slot]
        low = np.flatnonzero(active < _LOWEST)
        more = words[used : used + len(low)]
        if len(more) < len(low):
            raise UserError("the gaps end too early")
        active[low] = active[low] << np.uint32(16) | more
        used += len(low)
    if used != len(words) or (states != _LOWEST).any():
        raise UserError("the gaps are damaged")
    return symbols
