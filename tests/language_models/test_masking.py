"""Which tokens are hidden and what replaces them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emmental.language_models.masking import LmBatchMaker, Masking, mask_tokens, token_probabilities
from emmental.teaching.losses import IGNORED

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
ORDINARY = tuple(range(5, 60))


def masking(proportion: float = 0.15, shares: tuple[float, float, float] = (0.8, 0.1, 0.1)) -> Masking:
    probabilities = torch.ones(60)
    probabilities[list(SPECIAL)] = 0.0
    return Masking(probabilities, proportion, shares, MASK)


def batch_of(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 60, (length,), generator=generator)
        ids[row, 0], ids[row, length - 1] = CLS, SEP
    return ids, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_probabilities_are_smoothed_counts() -> None:
    found = token_probabilities(np.array([9, 0, 16, 1, 100]), 0.5, [0])
    assert found.tolist() == pytest.approx([0, 1, 1 / 4, 1, 1 / 10])
    assert token_probabilities(np.array([3, 7]), 0.0, []).tolist() == [1, 1]


@given(
    st.lists(st.integers(3, 12), min_size=1, max_size=6),
    st.sampled_from([0.05, 0.07, 0.15, 0.5, 1.0]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_as_many_as_promised_and_never_special_ones(lengths: list[int], proportion: float, seed: int) -> None:
    ids, attended = batch_of(lengths, seed)
    masked, labels = mask_tokens(ids, attended, masking(proportion), torch.Generator().manual_seed(seed))
    asked = labels != IGNORED
    tokens = sum(lengths)
    wanted = math.ceil(round(proportion * tokens, 9))
    assert int(asked.sum()) == min(wanted, tokens - 2 * len(lengths))
    assert torch.equal(labels[asked], ids[asked])
    assert not set(labels[asked].tolist()) & set(SPECIAL)
    assert torch.equal(masked[~asked], ids[~asked])
    assert not asked[~attended].any()


def test_the_shares_of_mask_same_and_random() -> None:
    ids, attended = batch_of([402] * 50)
    masked, labels = mask_tokens(ids, attended, masking(1.0), torch.Generator().manual_seed(3))
    asked = labels != IGNORED
    assert int(asked.sum()) == 20_000
    hidden = (masked[asked] == MASK).double().mean()
    same = (masked[asked] == ids[asked]).double().mean()
    # A random token is the true one in 1 of 55 cases; the bounds are four standard deviations.
    assert hidden == pytest.approx(0.8, abs=0.0114)
    assert same == pytest.approx(0.1 + 0.1 / 55, abs=0.0086)
    random_ids = masked[asked & (masked != MASK) & (masked != ids)]
    assert set(random_ids.tolist()) == set(ORDINARY)


def test_one_kind_alone() -> None:
    ids, attended = batch_of([12, 7])
    generator = torch.Generator().manual_seed(0)
    masked, labels = mask_tokens(ids, attended, masking(1.0, (1.0, 0.0, 0.0)), generator)
    assert (masked[labels != IGNORED] == MASK).all()
    masked, labels = mask_tokens(ids, attended, masking(1.0, (0.0, 1.0, 0.0)), generator)
    assert torch.equal(masked, ids)


def test_rare_tokens_are_drawn_more_often() -> None:
    probabilities = token_probabilities(np.array([1] * 5 + [10_000, 1]), 0.7, SPECIAL)
    rule = Masking(probabilities, 0.1, (1.0, 0.0, 0.0), MASK)
    ids = torch.tensor([[5, 6] * 20])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([mask_tokens(ids, torch.ones_like(ids).bool(), rule, generator)[1] for _ in range(200)])
    rare, frequent = int((drawn == 6).sum()), int((drawn == 5).sum())
    # 10000^0.7 = 631 times as likely: of 800 draws about 1.3 are of the frequent token.
    assert rare + frequent == 800
    assert frequent < 12


def test_a_batch_of_special_tokens_asks_nothing() -> None:
    ids = torch.tensor([[CLS, SEP]])
    masked, labels = mask_tokens(ids, torch.ones(1, 2).bool(), masking(1.0), torch.Generator())
    assert torch.equal(masked, ids)
    assert (labels == IGNORED).all()


def test_lengths_are_rounded_up_and_no_sequence_is_dropped() -> None:
    maker = LmBatchMaker(PAD, 8, masking(), seed=1)
    ids, _ = batch_of([9] * 15)
    rounded = maker.rounded(ids)
    assert rounded.shape == (15, 16)
    assert torch.equal(rounded[:, :9], ids)
    assert (rounded[:, 9:] == PAD).all()
    assert maker.rounded(ids[:, :8]).shape == (15, 8)


def test_causal_labels_are_the_tokens() -> None:
    ids, attended = batch_of([5, 3])
    inputs, mask, labels = LmBatchMaker(PAD, 1, None, 0).causal(ids, torch.tensor([5, 3]))
    assert torch.equal(inputs, ids)
    assert torch.equal(mask, attended)
    assert labels[1].tolist() == [*ids[1, :3].tolist(), IGNORED, IGNORED]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("rows", [6, 5, 1])
def test_ranks_share_what_one_process_would_ask(rows: int, world_size: int) -> None:
    ids, _ = batch_of(list(range(4, 4 + rows)))
    batch = {"input_ids": ids, "lengths": torch.arange(4, 4 + rows), "index": torch.arange(rows) + 40}
    whole = LmBatchMaker(PAD, 1, masking(0.4), 7).share(batch, 2, 0, 1)
    assert whole[3] is None
    shares = [LmBatchMaker(PAD, 1, masking(0.4), 7).share(batch, 2, rank, world_size) for rank in range(world_size)]
    assert len({share[0].shape for share in shares}) == 1
    for position in range(3):
        parts = torch.cat([share[position][share[3]] for share in shares])
        assert torch.equal(parts, whole[position])


def test_what_is_masked_changes_with_epoch_batch_and_seed_only() -> None:
    ids, _ = batch_of([12] * 8)

    def asked(epoch: int, first: int, seed: int = 7) -> list[int]:
        batch = {"input_ids": ids, "lengths": torch.full((8,), 12), "index": torch.arange(first, first + 8)}
        maker = LmBatchMaker(PAD, 1, masking(), seed)
        return maker.share(batch, epoch, 0, 1)[2].flatten().tolist()

    assert asked(0, 0) == asked(0, 0)
    assert len({tuple(asked(*case)) for case in ((0, 0), (1, 0), (0, 8), (0, 0, 8))}) == 4
