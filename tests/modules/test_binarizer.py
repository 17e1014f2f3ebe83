"""Masks from scores: reference masks, exact counts under ties, floors, NaN, gradients, hard concrete gates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emmental.modules import binarizer
from emmental.modules.binarizer import (
    MagnitudeBinarizer,
    ThresholdBinarizer,
    TopKBinarizer,
    above_with_ties,
    count_kept,
    hard_concrete_mask,
    hard_concrete_slope,
    kth_highest,
    kth_highest_of_all,
    magnitude_mask,
    minimum_kept,
    threshold_mask,
    top_mask,
    topk_mask,
)


def stable_top(scores: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` highest by sorting, ties in row-major order: slow and obvious."""
    mask = np.zeros(scores.size, dtype=bool)
    mask[np.argsort(-scores.reshape(-1).astype(np.float64), kind="stable")[:keep]] = True
    return mask.reshape(scores.shape)


def golden_masks(arrays: dict[str, np.ndarray], kind: str) -> list[tuple[torch.Tensor, float, np.ndarray]]:
    """(scores, threshold, reference mask) of every reference mask of one kind."""
    cases = []
    for index in range(3):
        prefix = f"bin{index}.{kind}."
        scores = torch.from_numpy(arrays[f"bin{index}.scores"])
        cases += [(scores, float(k[len(prefix) :]), arrays[k].astype(bool)) for k in arrays if k.startswith(prefix)]
    return cases


class TestReferenceMasks:
    """The reference implementation's masks; it keeps nothing where this one keeps the minimum."""

    def test_topk(self, golden_arrays):
        cases = golden_masks(golden_arrays, "topK")
        assert len(cases) == 18
        for scores, threshold, expected in cases:
            assert np.array_equal(topk_mask(scores, threshold).numpy(), expected), threshold

    def test_magnitude(self, golden_arrays):
        cases = golden_masks(golden_arrays, "magnitude")
        assert len(cases) == 18
        for weight, threshold, expected in cases:
            assert np.array_equal(magnitude_mask(weight, threshold).numpy(), expected), threshold

    @pytest.mark.parametrize(("kind", "sigmoid", "count"), [("sig", True, 18), ("thr", False, 15)])
    def test_threshold_methods_apart_from_the_floor(self, golden_arrays, kind, sigmoid, count):
        cases = golden_masks(golden_arrays, kind)
        assert len(cases) == count
        floored = 0
        for scores, threshold, expected in cases:
            mask = threshold_mask(scores, threshold, sigmoid).numpy()
            if np.array_equal(mask, expected):
                continue
            floored += 1
            assert expected.sum() <= minimum_kept(scores.numel())
            assert np.array_equal(mask, stable_top(scores.numpy(), minimum_kept(scores.numel())))
        assert floored <= 6


class TestCountKept:
    @pytest.mark.parametrize(
        ("fraction", "total", "expected"),
        [
            (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996 in floating point
            (0.57, 100, 57),
            (0.1, 10, 1),
            (0.15, 384 * 384, 22118),  # 22118.4
            (0.15, 7, 1),
            (0.0, 50, 0),
            (1.0, 50, 50),
            (0.999, 10, 9),
            (1e-9, 10**9, 1),
        ],
    )
    def test_floor_of_the_decimal_number(self, fraction, total, expected):
        assert count_kept(fraction, total) == expected

    @given(st.integers(0, 1000), st.integers(0, 5000))
    @settings(deadline=None, max_examples=300)
    def test_equals_integer_arithmetic_for_thousandths(self, thousandths, total):
        assert count_kept(thousandths / 1000, total) == thousandths * total // 1000

    @pytest.mark.parametrize("fraction", [-0.1, 1.0001, 15, math.nan, math.inf])
    def test_refuses_what_is_no_fraction(self, fraction):
        with pytest.raises(ValueError, match="from 0 to 1"):
            count_kept(fraction, 100)

    @pytest.mark.parametrize(("total", "expected"), [(1, 1), (199, 1), (200, 2), (1000, 6), (589824, 2950)])
    def test_minimum_is_half_a_percent_and_one(self, total, expected):
        assert minimum_kept(total) == expected


class TestTies:
    def test_constant_scores_keep_the_first_by_flat_index(self):
        mask = topk_mask(torch.zeros(3, 4), 0.5)
        assert mask.tolist() == [[True] * 4, [True, True, False, False], [False] * 4]

    def test_ties_at_the_boundary_only(self):
        scores = torch.tensor([[2.0, 1.0, 3.0], [1.0, 0.0, 1.0]])
        assert topk_mask(scores, 0.7).tolist() == [[True, True, True], [True, False, False]]

    def test_magnitude_ties_of_opposite_sign(self):
        assert magnitude_mask(torch.tensor([-1.0, 1.0, 0.5, -1.0]), 0.5).tolist() == [True, True, False, False]

    def test_minus_zero_equals_zero(self):
        assert topk_mask(torch.tensor([-0.0, 0.0, -0.0, 0.0]), 0.5).tolist() == [True, True, False, False]

    def test_infinities_are_ordered(self):
        scores = torch.tensor([-math.inf, math.inf, 0.0, math.inf, -math.inf])
        assert topk_mask(scores, 0.2).tolist() == [False, True, False, False, False]
        assert topk_mask(scores, 0.6).tolist() == [False, True, True, True, False]
        assert topk_mask(scores, 0.8).tolist() == [True, True, True, True, False]

    @given(
        rows=st.integers(1, 12),
        columns=st.integers(1, 12),
        thousandths=st.integers(0, 1000),
        levels=st.integers(1, 40),
        seed=st.integers(0, 2**32 - 1),
    )
    @settings(deadline=None, max_examples=300)
    def test_exact_counts_and_ties_as_a_stable_sort(self, rows, columns, thousandths, levels, seed):
        scores = np.random.default_rng(seed).integers(-levels, levels, (rows, columns)).astype(np.float32) / 7
        keep = thousandths * rows * columns // 1000
        mask = topk_mask(torch.from_numpy(scores), thousandths / 1000).numpy()
        assert mask.sum() == keep
        assert np.array_equal(mask, stable_top(scores, keep))
        magnitudes = magnitude_mask(torch.from_numpy(scores), thousandths / 1000).numpy()
        assert np.array_equal(magnitudes, stable_top(np.abs(scores), keep))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_every_dtype(self, dtype):
        scores = torch.arange(-50, 50).view(10, 10).to(dtype) / 8
        mask = topk_mask(scores, 0.29)
        assert int(mask.sum()) == 29
        assert mask.view(-1)[-29:].all()

    def test_float64_scores_closer_than_float32_resolves(self):
        scores = torch.tensor([1.0 + 3e-12, 1.0 + 1e-12, 1.0 + 2e-12, 1.0], dtype=torch.float64)
        assert topk_mask(scores, 0.5).tolist() == [True, False, True, False]

    def test_kth_highest_counts_the_ties_that_stay(self):
        scores = torch.tensor([5.0, 4.0, 4.0, 4.0, 1.0])
        assert kth_highest(scores, 1) == (5.0, 1)
        assert kth_highest(scores, 3) == (4.0, 2)
        assert kth_highest(scores, 5) == (1.0, 1)

    @settings(deadline=None, max_examples=60)
    @given(st.integers(0, 999), st.integers(1, 1000), st.sampled_from([2, 50, 10**6]), st.sampled_from([1, 64, 2**16]))
    def test_kth_highest_of_all_parts_is_that_of_a_sort(self, seed, thousandths, levels, sample):
        generator = np.random.default_rng(seed)
        parts = [
            generator.integers(-levels, levels, size).astype(np.float32) * scale / 7
            for size, scale in zip(generator.integers(1, 400, 3), (1, 1, 30), strict=True)
        ]
        keep = max(1, thousandths * sum(map(len, parts)) // 1000)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(binarizer, "_SAMPLE", sample)
            boundary, ties = kth_highest_of_all([torch.from_numpy(part) for part in parts], keep)
        expected = np.split(stable_top(np.concatenate(parts), keep), np.cumsum([len(part) for part in parts])[:-1])
        for part, tied, mask in zip(parts, ties, expected, strict=True):
            assert np.array_equal(above_with_ties(torch.from_numpy(part), boundary, tied).numpy(), mask)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
    def test_a_sample_narrows_the_choice_of_many_scores_down(self, dtype):
        scores = torch.randn(400_000, generator=torch.Generator().manual_seed(0)).to(dtype)
        parts = scores.split([100_000, 300_000])
        near, above = binarizer._near_the_lowest(parts, 60_000)
        assert above < 60_000 <= above + len(near[0]) + len(near[1]) < 80_000
        assert len(near[0]) + len(near[1]) < 20_000
        boundary, ties = kth_highest_of_all(parts, 60_000)
        assert boundary == float(scores.sort(descending=True).values[59_999])
        assert sum(int((part > boundary).sum()) + tied for part, tied in zip(parts, ties, strict=True)) == 60_000

    def test_a_sample_that_misleads_is_not_trusted(self):
        scores = torch.zeros(400_000)
        scores[1::7] = torch.arange(1.0, len(scores[1::7]) + 1)  # a step of 7 from the first sees none of these
        near, above = binarizer._near_the_lowest([scores], 1000)
        assert (above, len(near[0])) == (0, 400_000)
        assert kth_highest_of_all([scores], 1000) == (float(len(scores[1::7]) - 999), [1])

    def test_nan_in_any_part_is_refused(self):
        with pytest.raises(ValueError, match="mask scores hold NaN"):
            kth_highest_of_all([torch.zeros(3), torch.tensor([1.0, math.nan])], 2)

    def test_above_with_ties(self):
        scores = torch.tensor([[5.0, 4.0], [4.0, 6.0]])
        assert above_with_ties(scores, 4.0, 0).tolist() == [[True, False], [False, True]]
        assert above_with_ties(scores, 4.0, 1).tolist() == [[True, True], [False, True]]
        assert above_with_ties(scores, 4.0, 9).tolist() == [[True, True], [True, True]]

    def test_all_and_nothing(self):
        scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        assert int(top_mask(scores, 0).sum()) == 0
        assert int(top_mask(scores, 16).sum()) == 16


class TestThresholdMethods:
    def test_strictly_above(self):
        scores = torch.tensor([0.0, 1.0, -1.0, 2.0])
        assert threshold_mask(scores, 1.0, sigmoid=False).tolist() == [False, False, False, True]
        assert threshold_mask(scores, 0.5, sigmoid=True).tolist() == [False, True, False, True]

    def test_sigmoid_by_hand(self):
        scores = torch.tensor([-math.log(9.0), -math.log(8.9)])  # sigmoids 0.1 and 0.10101
        assert threshold_mask(scores, 0.1005, sigmoid=True).tolist() == [False, True]

    def test_minimum_keeps_the_highest_scores(self):
        scores = torch.arange(1000.0)
        mask = threshold_mask(scores, 5000.0, sigmoid=False)
        assert torch.nonzero(mask).view(-1).tolist() == [994, 995, 996, 997, 998, 999]

    def test_minimum_with_constant_scores(self):
        mask = threshold_mask(torch.zeros(10, 40), 0.9, sigmoid=True)
        assert torch.nonzero(mask.view(-1)).view(-1).tolist() == [0, 1, 2]

    def test_saturated_sigmoids_are_ranked_by_their_scores(self):
        """sigmoid(40) and sigmoid(90) are both 1.0 in float32; the minimum keeps the higher score."""
        scores = torch.full((199,), 40.0)
        scores[150] = 90.0
        mask = threshold_mask(scores, 1.0, sigmoid=True)
        assert torch.nonzero(mask).view(-1).tolist() == [150]

    @given(
        size=st.integers(1, 700), threshold=st.floats(-3, 3, width=32), sigmoid=st.booleans(), seed=st.integers(0, 999)
    )
    @settings(deadline=None, max_examples=150)
    def test_never_fewer_than_the_minimum_and_otherwise_exact(self, size, threshold, sigmoid, seed):
        scores = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        above = (scores.sigmoid() if sigmoid else scores) > threshold
        mask = threshold_mask(scores, threshold, sigmoid)
        fewest = size * 5 // 1000 + 1
        assert int(mask.sum()) == max(int(above.sum()), fewest)
        assert bool((mask | ~above).all())


class TestBadScores:
    @pytest.mark.parametrize("position", [0, 7, 15])
    @pytest.mark.parametrize("threshold", [0.25, 1.0])
    def test_nan_raises(self, position, threshold):
        scores = torch.arange(16.0).view(4, 4)
        scores.view(-1)[position] = math.nan
        with pytest.raises(ValueError, match="NaN"):
            topk_mask(scores, threshold)
        with pytest.raises(ValueError, match="NaN"):
            magnitude_mask(scores, threshold)
        for sigmoid in (False, True):
            with pytest.raises(ValueError, match="NaN"):
                threshold_mask(scores, threshold, sigmoid)
        for training in (False, True):
            with pytest.raises(ValueError, match="NaN"):
                hard_concrete_mask(scores, training)

    def test_non_contiguous_scores(self):
        scores = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
        expected = stable_top(scores.numpy(), 24)
        transposed = scores.t().contiguous().t()
        assert not transposed.is_contiguous()
        assert np.array_equal(topk_mask(transposed, 0.5).numpy(), expected)
        assert TopKBinarizer.apply(transposed, 0.5).unique().tolist() == [0.0, 1.0]

    def test_non_contiguous_ties_count_in_row_major_order(self):
        mask = topk_mask(torch.zeros(4, 3).t(), 0.5)
        assert mask.tolist() == [[True] * 4, [True, True, False, False], [False] * 4]

    def test_scores_are_not_changed(self):
        scores = torch.tensor([3.0, 1.0, 2.0])
        for mask in (topk_mask(scores, 0.4), magnitude_mask(scores, 0.4), threshold_mask(scores, 0.5, True)):
            assert mask.dtype == torch.bool
        assert scores.tolist() == [3.0, 1.0, 2.0]


class TestBinarizers:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_shape_and_dtype_are_those_of_the_scores(self, dtype):
        scores = torch.arange(10, dtype=dtype).view(2, 5)
        for mask in (
            TopKBinarizer.apply(scores, 0.5),
            ThresholdBinarizer.apply(scores, 4.5, False),
            MagnitudeBinarizer.apply(scores, 0.5),
        ):
            assert mask.shape == (2, 5)
            assert mask.dtype == dtype
            assert mask.tolist() == [[0.0] * 5, [1.0] * 5]

    def test_straight_through(self):
        gradient = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
        for apply in (lambda s: TopKBinarizer.apply(s, 0.5), lambda s: ThresholdBinarizer.apply(s, 0.6, True)):
            scores = torch.tensor([[0.1, 0.2], [0.3, 0.4]], requires_grad=True)
            apply(scores).backward(gradient)
            assert torch.equal(scores.grad, gradient)

    def test_magnitude_has_no_gradient(self):
        weight = torch.tensor([1.0, -2.0], requires_grad=True)
        assert not MagnitudeBinarizer.apply(weight, 0.5).requires_grad


class TestHardConcrete:
    def test_evaluation_by_hand(self):
        """clamp(1.2 sigmoid(S) - 0.1): 0.5 at 0; closed from sigmoid 1/12 down, open from 11/12 up."""
        scores = torch.tensor([0.0, -math.log(11.0) - 0.01, math.log(11.0) + 0.01, math.log(3.0)])
        assert hard_concrete_mask(scores, training=False).tolist() == pytest.approx([0.5, 0.0, 1.0, 0.8], abs=1e-6)

    def test_training_draws_the_published_gate(self):
        scores = torch.linspace(-3, 3, 500)
        mask = hard_concrete_mask(scores, training=True, generator=torch.Generator().manual_seed(5))
        noise = torch.empty(500).uniform_(1e-4, 1 - 1e-4, generator=torch.Generator().manual_seed(5))
        gate = torch.sigmoid((noise.log() - (1 - noise).log() + scores) / (2 / 3))
        assert torch.allclose(mask, (gate * 1.2 - 0.1).clamp(0, 1), atol=1e-6)

    def test_seeded_draws_repeat_and_stay_in_range(self):
        scores = torch.zeros(20000)
        first = hard_concrete_mask(scores, True, torch.Generator().manual_seed(1))
        again = hard_concrete_mask(scores, True, torch.Generator().manual_seed(1))
        other = hard_concrete_mask(scores, True, torch.Generator().manual_seed(2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert float(first.min()) == 0.0
        assert float(first.max()) == 1.0
        # P(gate > 0) = sigmoid(S - b log(-l / r)) = sigmoid(2/3 log 11) = 0.8318; four standard errors are 0.011.
        assert float((first > 0).float().mean()) == pytest.approx(1 / (1 + 11 ** (-2 / 3)), abs=0.011)

    def test_a_seeded_draw_leaves_the_global_generator_alone(self):
        torch.manual_seed(11)
        expected = torch.rand(4)
        torch.manual_seed(11)
        hard_concrete_mask(torch.zeros(50), True, torch.Generator().manual_seed(0))
        assert torch.equal(torch.rand(4), expected)

    def test_a_global_threshold_opens_exactly_what_is_above_it_and_the_first_ties(self):
        """Boundary 2 is moved to log(1 / 11), where gates open; 5 is then at 3 + log(1 / 11)."""
        scores = torch.tensor([1.9, 2.0, 5.0, 2.0, 2.0 + 1e-6])
        gates = hard_concrete_mask(scores, training=False, global_threshold=(2.0, 1))
        assert (gates > 0).tolist() == [False, True, True, False, True]
        assert float(gates[2]) == pytest.approx(1.2 / (1 + 11 * math.exp(-3)) - 0.1, abs=1e-6)

    def test_the_highest_and_the_lowest_global_threshold_close_and_open_all(self):
        scores, limits = torch.tensor([-50.0, 0.0, 50.0]), torch.finfo(torch.float32)
        for training in (False, True):
            assert hard_concrete_mask(scores, training, global_threshold=(limits.min, 3)).tolist() == [1.0] * 3
            assert hard_concrete_mask(scores, training, global_threshold=(limits.max, 0)).tolist() == [0.0] * 3

    @pytest.mark.parametrize("training", [False, True])
    def test_slope_equals_autograd(self, training):
        scores = torch.linspace(-4, 4, 400, dtype=torch.float64, requires_grad=True)
        mask = hard_concrete_mask(scores, training, torch.Generator().manual_seed(9))
        if training:
            noise = torch.empty(400, dtype=torch.float64)
            noise.uniform_(1e-4, 1 - 1e-4, generator=torch.Generator().manual_seed(9))
            gate = torch.sigmoid((noise.log() - (1 - noise).log() + scores) / (2 / 3))
        else:
            gate = torch.sigmoid(scores)
        (gate * 1.2 - 0.1).clamp(0, 1).sum().backward()
        assert torch.allclose(hard_concrete_slope(mask, training), scores.grad, atol=1e-10)
        assert int((scores.grad == 0).sum()) > 10
        assert int((scores.grad > 0).sum()) > 100
