"""Coded positions: the inverse, sizes beside the entropy, and what damaged codes do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emmental.export.position_code import decode_positions, encode_positions, entropy_bits


def random_positions(size: int, density: float, seed: int = 0) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(seed).random(size) < density)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 20000),
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 1e-3])),
    st.integers(0, 9),
)
def test_round_trip(size, density, seed):
    positions = random_positions(size, density, seed)
    code = encode_positions(positions, size)
    assert np.array_equal(decode_positions(code, len(positions), size), positions)


@settings(deadline=None, max_examples=100)
@given(st.sets(st.integers(0, 3000), max_size=60))
def test_round_trip_of_chosen_positions(chosen):
    positions = np.array(sorted(chosen), dtype=np.int64)
    assert np.array_equal(decode_positions(encode_positions(positions, 3001), len(positions), 3001), positions)


def test_entropy_by_hand():
    assert entropy_bits(5, 10) == 10.0
    assert entropy_bits(0, 10) == entropy_bits(10, 10) == 0.0
    assert entropy_bits(1, 4) == pytest.approx(4 * (0.25 * 2 + 0.75 * 0.4150375), abs=1e-6)


@pytest.mark.parametrize(("density", "most"), [(0.003, 1.25), (0.03, 1.05), (0.06, 1.04), (0.15, 1.03)])
def test_size_is_near_the_entropy(density, most):
    positions = random_positions(768 * 768, density)
    code = encode_positions(positions, 768 * 768)
    assert code.kind == "gaps"
    assert code.nbytes * 8 <= most * entropy_bits(len(positions), 768 * 768)


def test_dense_matrices_take_a_bitmap():
    code = encode_positions(random_positions(8000, 0.5), 8000)
    assert (code.kind, code.nbytes, code.data.dtype) == ("bitmap", 1000, np.uint8)


def test_a_full_matrix_costs_almost_nothing():
    code = encode_positions(np.arange(100000), 100000)
    assert (code.kind, code.symbols, code.nbytes) == ("gaps", 100000, 2 + 4)


def test_gaps_longer_than_an_escape():
    positions = np.array([254, 510, 1021])  # gaps 254, 255 and 510: one, two and three symbols
    code = encode_positions(positions, 100000)
    assert (code.kind, code.symbols) == ("gaps", 6)
    assert decode_positions(code, 3, 100000).tolist() == [254, 510, 1021]


@pytest.fixture(scope="module")
def code():
    return encode_positions(random_positions(4000, 0.06), 4000)


NONZEROS = len(random_positions(4000, 0.06))


@pytest.mark.parametrize(
    "change",
    [
        {"symbols": 10**12},
        {"symbols": -1},
        {"kind": "eval"},
        {"kind": "bitmap"},
        {"states": np.empty(0, np.uint32)},
        {"states": np.full(1, 7, np.uint32)},
        {"table": np.zeros(4, np.uint16)},
        {"table": np.empty(0, np.uint16)},
        {"data": np.empty(0, np.uint16)},
    ],
    ids=str,
)
def test_lying_codes_are_refused(code, change):
    with pytest.raises(ValueError, match=r"\w"):
        decode_positions(code._replace(**change), NONZEROS, 4000)


def test_wrong_counts_are_refused(code):
    for nonzeros, size in ((NONZEROS - 1, 4000), (NONZEROS, 3000), (-1, 4000), (5000, 4000), (10**12, 10**13)):
        with pytest.raises(ValueError, match=r"\w"):
            decode_positions(code, nonzeros, size)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_flipped_bits_end_in_positions_or_one_error(code, data):
    field = data.draw(st.sampled_from(["table", "states", "data"]))
    array = getattr(code, field).copy()
    raw = array.view(np.uint8)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        positions = decode_positions(code._replace(**{field: array}), NONZEROS, 4000)
    except ValueError:
        return
    assert len(positions) == NONZEROS
    assert (np.diff(positions) > 0).all()
    assert 0 <= positions[0] <= positions[-1] < 4000
