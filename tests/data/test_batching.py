from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emmental.data.batching import LengthGroupedBatches, RowBatch, SequentialBatches, padding_share

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=150).map(np.array)
SAMPLERS = [LengthGroupedBatches, SequentialBatches]


def rows_of(batches: list[RowBatch]) -> list[list[tuple[int, float]]]:
    return [list(zip(batch.indices.tolist(), batch.weights.tolist(), strict=True)) for batch in batches]


@pytest.mark.parametrize("sampler", SAMPLERS)
@given(lengths=LENGTHS, batch_size=st.integers(1, 9), world_size=st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_every_row_counts_once_over_the_ranks(sampler, lengths, batch_size, world_size) -> None:
    ranks = [list(sampler(lengths, batch_size, rank, world_size)) for rank in range(world_size)]
    counted = [index for batches in ranks for rows in rows_of(batches) for index, weight in rows if weight > 0]
    assert sorted(counted) == list(range(len(lengths)))
    steps = -(-len(lengths) // (batch_size * world_size))
    assert [len(batches) for batches in ranks] == [steps] * world_size
    assert len(sampler(lengths, batch_size, 0, world_size)) == steps
    if world_size > 1:
        assert {len(batch) for batches in ranks for batch in batches} == {batch_size}
    else:
        assert all(weight == 1.0 for rows in rows_of(ranks[0]) for _, weight in rows)


@pytest.mark.parametrize("sampler", SAMPLERS)
@given(lengths=LENGTHS, batch_size=st.integers(1, 9), epoch=st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_two_ranks_see_the_global_batches_of_one_process(sampler, lengths, batch_size, epoch) -> None:
    single = sampler(lengths, 2 * batch_size)
    pair = [sampler(lengths, batch_size, rank, 2) for rank in (0, 1)]
    if sampler is LengthGroupedBatches:
        for batches in (single, *pair):
            batches.set_epoch(epoch)
    both = [first + second for first, second in zip(*(rows_of(list(batches)) for batches in pair), strict=True)]
    kept = [[index for index, weight in rows if weight > 0] for rows in both]
    assert kept == [[index for index, _ in rows] for rows in rows_of(list(single))]
    for rows in both:
        assert sum(weight for _, weight in rows) == pytest.approx(len(rows))


@given(lengths=LENGTHS, start=st.integers(0, 20))
@settings(deadline=None, max_examples=40)
def test_resuming_skips_exactly_the_first_batches(lengths, start) -> None:
    batches = LengthGroupedBatches(lengths, 4, seed=7)
    batches.set_epoch(2)
    whole = rows_of(list(batches))
    start = min(start, len(batches))
    batches.set_epoch(2, start_batch=start)
    assert rows_of(list(batches)) == whole[start:]
    assert len(batches) == len(whole)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.arange(1, 101)

    def order(seed: int, epoch: int) -> list:
        batches = LengthGroupedBatches(lengths, 3, seed=seed)
        batches.set_epoch(epoch)
        np.random.seed(epoch)
        return rows_of(list(batches))

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_without_shuffling_a_pool_is_sorted_by_length_and_ties_keep_the_file_order() -> None:
    batches = LengthGroupedBatches(np.array([1, 5, 3, 5, 2]), 2, shuffle=False)
    assert [batch.indices.tolist() for batch in batches] == [[1, 3], [2, 4], [0]]


def test_evaluation_starts_with_the_longest_and_fills_up_with_weight_zero() -> None:
    lengths = np.array([4, 9, 9, 1, 7])
    first, second = (rows_of(list(SequentialBatches(lengths, 2, rank, 2))) for rank in (0, 1))
    assert first == [[(1, 1.0), (2, 1.0)], [(3, 4.0), (3, 0.0)]]
    assert second == [[(4, 1.0), (0, 1.0)], [(3, 0.0), (3, 0.0)]]


def test_evaluation_of_some_rows() -> None:
    lengths = np.array([4, 9, 9, 1, 7])
    first, second = (rows_of(list(SequentialBatches(lengths, 2, rank, 2, np.array([0, 3, 4])))) for rank in (0, 1))
    assert first == [[(4, pytest.approx(4 / 3)), (0, pytest.approx(4 / 3))]]
    assert second == [[(3, pytest.approx(4 / 3)), (4, 0.0)]]


def test_rows_of_the_first_batches() -> None:
    batches = LengthGroupedBatches(np.arange(1, 12), 2, rank=1, world_size=2, seed=5)
    both = [list(LengthGroupedBatches(np.arange(1, 12), 2, rank, 2, seed=5)) for rank in (0, 1)]
    seen = {int(row) for rank in both for batch in rank[:2] for row in batch.indices}
    assert batches.rows_of(2).tolist() == sorted(seen)
    assert batches.rows_of(99).tolist() == list(range(11))


def test_padding_share_by_hand() -> None:
    ones = np.ones(2, np.float32)
    batches = [RowBatch(np.array([0, 1]), ones), RowBatch(np.array([2, 3]), ones)]
    assert padding_share(np.array([4, 2, 5, 5]), batches) == pytest.approx(2 / 18)


@pytest.mark.parametrize(("batch_size", "limit"), [(8, 0.05), (32, 0.05)])
def test_little_is_padded_where_lengths_vary(batch_size: int, limit: float) -> None:
    lengths = np.random.default_rng(0).integers(5, 129, size=6400)
    shuffled = np.random.default_rng(1).permutation(6400).reshape(-1, batch_size)
    at_random = [RowBatch(rows, np.ones(batch_size, np.float32)) for rows in shuffled]
    assert padding_share(lengths, LengthGroupedBatches(lengths, batch_size)) < limit
    assert padding_share(lengths, at_random) > 0.35


def test_impossible_shares_are_refused() -> None:
    for arguments in ((0, 0, 1), (1, 1, 1), (1, -1, 1)):
        with pytest.raises(ValueError, match="no such share"):
            SequentialBatches(np.ones(3), *arguments)
    with pytest.raises(ValueError, match="no examples"):
        LengthGroupedBatches(np.array([]), 2)
    with pytest.raises(ValueError, match="batch 3 of an epoch with 2 batches"):
        LengthGroupedBatches(np.ones(3), 2).set_epoch(0, start_batch=3)
