"""Schedule, regularization, global top-k and densities: reference numbers, by hand, and exact counts under ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_masked
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from emmental import MaskedBertConfig, MaskedBertForSequenceClassification
from emmental.modules import MaskedLinear
from emmental.patching import mask_linears, masked_layers, set_threshold
from emmental.pruning import (
    densities,
    freeze_scores,
    gather_information,
    global_threshold,
    mask_churn,
    masks_of,
    regularization,
    remaining_weights,
    renew_masks,
    schedule_threshold,
)


def network(*scores: list[list[float]], method: str = "topK") -> nn.Sequential:
    """One masked layer for each matrix of scores (for `magnitude`: of weights)."""
    layers = []
    for matrix in scores:
        values = torch.tensor(matrix)
        layer = MaskedLinear(values.shape[1], values.shape[0], pruning_method=method)
        with torch.no_grad():
            (layer.weight if method == "magnitude" else layer.mask_scores).copy_(values)
        layers.append(layer)
    return nn.Sequential(*layers)


class TestSchedule:
    def test_reference_numbers(self, golden_values):
        rows = golden_values["schedule"]
        assert len(rows) == 47
        for row in rows:
            *arguments, threshold, regu_lambda = row
            got = schedule_threshold(*arguments)
            assert got[0] == pytest.approx(threshold, rel=1e-9, abs=1e-9), row
            assert got[1] == pytest.approx(regu_lambda, rel=1e-9, abs=1e-9), row

    def test_by_hand(self):
        """100 updates, w = 10: constant to 10, cubic over the 70 to 80, constant from 81; half way 1 - (1/2)^3."""

        def at(step: int) -> tuple[float, float]:
            return schedule_threshold(step, 100, 10, 1.0, 0.2, 1, 2, 3.0)

        assert at(1) == at(10) == (1.0, pytest.approx(15.0))
        assert at(45) == (pytest.approx(0.2 + 0.8 / 8), pytest.approx(3.0 * 0.3 / 0.2))
        assert at(24)[0] == pytest.approx(0.2 + 0.8 * 0.8**3)
        assert at(80) == (pytest.approx(0.2), pytest.approx(3.0))
        assert at(81) == at(100) == (0.2, pytest.approx(3.0))

    def test_rising_threshold_of_soft_movement(self):
        assert schedule_threshold(45, 100, 10, 0.0, 0.1, 1, 2, 400.0) == (
            pytest.approx(0.0875),
            pytest.approx(350.0),
        )

    def test_final_threshold_zero_has_a_constant_lambda(self):
        assert schedule_threshold(50, 100, 0, 0.0, 0.0, 0, 0, 7.0) == (0.0, 7.0)
        assert schedule_threshold(100, 100, 10, 1.0, 0.0, 1, 2, 7.0) == (0.0, 7.0)

    @given(
        total=st.integers(1, 3000),
        warmup=st.integers(0, 300),
        initial_warmup=st.integers(0, 4),
        final_warmup=st.integers(0, 4),
        start=st.floats(0.05, 1.0),
        end=st.floats(0.01, 1.0),
    )
    @settings(deadline=None, max_examples=200)
    def test_monotone_between_the_two_and_final_at_the_end(
        self, total, warmup, initial_warmup, final_warmup, start, end
    ):
        if (initial_warmup + final_warmup) * warmup >= total:
            warmup = 0
        steps = sorted({1, 2, total // 4, total // 2, total - 1, total} - {0})
        values = [
            schedule_threshold(s, total, warmup, start, end, initial_warmup, final_warmup, 1.0)[0] for s in steps
        ]
        assert values[-1] == end
        low, high = min(start, end), max(start, end)
        assert all(low - 1e-12 <= value <= high + 1e-12 for value in values)
        assert values == sorted(values, reverse=start > end) or np.allclose(np.diff(values), 0, atol=1e-12)


class TestRegularization:
    @pytest.mark.parametrize("method", ["sigmoied_threshold", "l0"])
    @pytest.mark.parametrize("mode", ["l1", "l0"])
    def test_reference_numbers(self, golden_arrays, golden_values, method, mode):
        size = {"vocab_size": 120, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
        config = MaskedBertConfig(
            **size, num_hidden_layers=2, max_position_embeddings=40, num_labels=3, pruning_method=method
        )
        model = MaskedBertForSequenceClassification(config)
        prefix = f"model.{method}.param."
        model.load_state_dict({k[len(prefix) :]: torch.tensor(v) for k, v in golden_arrays.items() if prefix in k})
        expected = golden_values[f"regu.{method}.{mode}"]
        assert regularization(model, mode).item() == pytest.approx(expected, rel=1e-6)

    def test_by_hand_averaged_over_matrices(self):
        """Means of sigmoid: 1/2 for zeros, and 3/4 for log 3; each matrix counts the same whatever its size."""
        model = network([[0.0, 0.0], [0.0, 0.0]], [[math.log(3.0)]])
        assert regularization(model, "l1").item() == pytest.approx((0.5 + 0.75) / 2)

    def test_l0_is_the_expected_share_of_open_gates(self):
        """sigmoid(2/3 log 11) of scores that are 0."""
        expected = 1 / (1 + 11 ** (-2 / 3))
        assert regularization(network([[0.0, 0.0]]), "l0").item() == pytest.approx(expected)

    def test_gradient_is_the_sigmoids_slope_over_all_weights(self):
        model = network([[0.0, math.log(3.0)]], [[0.0]])
        regularization(model, "l1").backward()
        assert model[0].mask_scores.grad.view(-1).tolist() == pytest.approx([0.25 / 4, 0.1875 / 4])
        assert model[1].mask_scores.grad.item() == pytest.approx(0.25 / 2)

    def test_refuses_what_has_no_scores(self):
        for model in (network([[1.0]], method="magnitude"), nn.Linear(2, 2)):
            with pytest.raises(ValueError, match="no mask scores"):
                regularization(model, "l1")
        with pytest.raises(ValueError, match="l1, l0, not 'l2'"):
            regularization(network([[1.0]]), "l2")


class TestGlobalTopK:
    def test_by_hand(self):
        """The 5 highest of 10 scores: 9, 8, 7 and, of three that are 6, the two in the first matrix."""
        model = network([[6.0, 9.0], [1.0, 6.0]], [[8.0, 6.0, 7.0], [0.0, 2.0, 3.0]])
        assert global_threshold(model, 0.5) == (6.0, [2, 0])
        set_threshold(model, 0.5, global_threshold(model, 0.5))
        assert model[0].mask.tolist() == [[True, True], [False, True]]
        assert model[1].mask.tolist() == [[True, False, True], [False, False, False]]
        assert global_threshold(model, 0.6) == (6.0, [2, 1])
        assert global_threshold(model, 0.4) == (6.0, [1, 0])

    @pytest.mark.parametrize("method", ["topK", "threshold"])
    def test_all_and_nothing(self, method):
        """Also when scores move before the boundary is computed again, and finite, as JSON needs it."""
        model = network([[1.0, 2.0]], [[3.0]], method=method)
        for fraction, remaining in ((1.0, 100.0), (0.0, 0.0)):
            score, ties = global_threshold(model, fraction)
            assert math.isfinite(score)
            set_threshold(model, fraction, (score, ties))
            assert remaining_weights(model) == remaining
            with torch.no_grad():
                model[0].mask_scores.mul_(-1e6)
            assert remaining_weights(model) == remaining

    def test_infinite_scores_are_never_kept_beyond_the_budget(self):
        model = network([[math.inf, math.inf, 1.0, 0.0]])
        set_threshold(model, 0.25, global_threshold(model, 0.25))
        assert model[0].mask.tolist() == [[True, False, False, False]]

    def test_equal_to_per_matrix_pruning_of_a_single_matrix(self):
        torch.manual_seed(0)
        model = network(torch.randn(8, 9).tolist())
        set_threshold(model, 0.3)
        alone = model[0].mask.clone()
        set_threshold(model, 0.3, global_threshold(model, 0.3))
        assert torch.equal(model[0].mask, alone)

    @given(
        shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
        thousandths=st.integers(0, 1000),
        levels=st.integers(1, 30),
        seed=st.integers(0, 2**32 - 1),
    )
    @settings(deadline=None, max_examples=150)
    def test_exact_counts_and_ties_in_order(self, shapes, thousandths, levels, seed):
        generator = np.random.default_rng(seed)
        scores = [generator.integers(0, levels, shape).astype(np.float32) / 3 for shape in shapes]
        model = network(*[matrix.tolist() for matrix in scores])
        fraction = thousandths / 1000
        set_threshold(model, fraction, global_threshold(model, fraction))
        flat = np.concatenate([matrix.reshape(-1) for matrix in scores])
        keep = thousandths * len(flat) // 1000
        expected = np.zeros(len(flat), bool)
        expected[np.argsort(-flat, kind="stable")[:keep]] = True
        got = np.concatenate([mask.reshape(-1).numpy() for mask in masks_of(model).values()])
        assert got.sum() == keep
        assert np.array_equal(got, expected)

    def test_refuses_what_it_cannot_do(self):
        with pytest.raises(ValueError, match="no mask scores"):
            global_threshold(network([[1.0]], method="magnitude"), 0.5)
        with pytest.raises(ValueError, match="from 0 to 1"):
            global_threshold(network([[1.0]]), 1.5)
        with pytest.raises(ValueError, match="NaN"):
            global_threshold(network([[1.0, math.nan, 2.0]]), 0.5)


class TestRefreshMasks:
    def test_masks_are_made_at_once(self):
        model = network([[1.0, 2.0]], [[3.0, 4.0]])
        assert [layer.kept_mask for layer in model] == [None, None]
        renew_masks(model, 0.5)
        assert [layer.kept_mask.tolist() for layer in model] == [[[False, True]], [[False, True]]]

    def test_l0_noise_is_seeded_and_differs_between_layers(self):
        def gates(seed: int) -> list[torch.Tensor]:
            model = network([[0.0] * 9] * 9, [[0.0] * 9] * 9, method="l0")
            renew_masks(model, None, noise_seed=seed)
            return [layer.mask for layer in model]

        first, again, other = gates(3), gates(3), gates(100)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(first[0], other[0])


class TestMaskChurn:
    def test_by_hand(self):
        """Six entries: 4 5 6 are kept; with 1 raised to 9 it is 9 5 6, so that two of the six changed."""
        model = network([[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]])
        renew_masks(model, 0.34)
        assert [layer.mask.tolist() for layer in model] == [[[False, False, True]], [[False, False, True]]]
        with torch.no_grad():
            model[0].mask_scores[0, 0] = 9.0
        assert mask_churn(model) == pytest.approx(2 / 6)
        assert mask_churn(model) == 0.0

    def test_a_moved_threshold_is_no_churn(self):
        model = network([[1.0, 2.0, 3.0, 4.0, 5.0]])
        renew_masks(model, 1.0)
        renew_masks(model, 0.4)
        assert mask_churn(model) == 0.0

    def test_l0_counts_gates_that_open_or_close(self):
        model = network([[50.0, -50.0, 50.0]], method="l0")
        renew_masks(model, None, noise_seed=1)
        with torch.no_grad():
            model[0].mask_scores.copy_(torch.tensor([[40.0, -40.0, -50.0]]))
        assert mask_churn(model) == pytest.approx(1 / 3)

    def test_masks_never_used_have_not_changed(self):
        assert mask_churn(network([[1.0, 2.0]])) == 0.0


class TestWhatRemains:
    def test_by_hand(self):
        model = network([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
        set_threshold(model, 0.5)
        assert densities(model) == {"0": 0.5, "1": 0.5}
        assert remaining_weights(model) == 50.0
        set_threshold(model, 0.34)  # 1 of 4 and 2 of 6
        assert densities(model) == {"0": 0.25, "1": pytest.approx(1 / 3)}
        assert remaining_weights(model) == pytest.approx(30.0)
        assert {name: mask.tolist() for name, mask in masks_of(model).items()} == {
            "0": [[False, False], [False, True]],
            "1": [[False] * 4 + [True] * 2],
        }

    def test_magnitude(self):
        model = network([[-3.0, 1.0, 2.0, 0.5]], method="magnitude")
        set_threshold(model, 0.5)
        assert masks_of(model)["0"].tolist() == [[True, False, True, False]]
        assert remaining_weights(model) == 50.0

    def test_l0_counts_gates_above_zero(self):
        model = network([[-9.0, 0.0, 9.0]], method="l0").eval()
        assert remaining_weights(model) == pytest.approx(200 / 3)

    def test_a_dense_model_keeps_all(self):
        assert remaining_weights(nn.Linear(3, 3)) == 100.0
        assert densities(nn.Linear(3, 3)) == {}

    def test_the_floor_of_a_threshold_method_is_what_is_reported(self):
        model = nn.Sequential(nn.Linear(20, 10))
        mask_linears(model, pruning_method="sigmoied_threshold")
        set_threshold(model, 0.9)
        assert remaining_weights(model) == pytest.approx(100 * 2 / 200)
        assert int(next(iter(masked_layers(model).values())).mask.sum()) == 2


class TestGradientCheckpointing:
    """Layers are computed again in the backward pass: with the same gates, and the same dropout."""

    @pytest.mark.parametrize("renewed", [True, False], ids=["masks of an update", "masks of a forward pass"])
    @pytest.mark.parametrize("method", ["l0", "topK"])
    def test_gradients_are_those_without_it(self, method, renewed):
        gradients = []
        for checkpointed in (False, True):
            model = tiny_masked.make(method=method, hidden_dropout_prob=0.2).train()
            if checkpointed:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            torch.manual_seed(5)
            if renewed:
                renew_masks(model, model.config.threshold)
            model(torch.tensor([[2, 5, 9, 3]]), labels=torch.tensor([1])).loss.backward()
            gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        for plain, recomputed in zip(*gradients, strict=True):
            assert torch.allclose(plain, recomputed, atol=1e-6)
        assert sum(float(gradient.abs().sum()) for gradient in gradients[0]) > 1

    def test_noise_is_drawn_once_an_update(self):
        model = tiny_masked.make(method="l0", hidden_dropout_prob=0.2).train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        renew_masks(model, None, noise_seed=3)
        gates = [layer.mask for layer in masked_layers(model).values()]
        for _ in range(2):
            model(torch.tensor([[2, 5, 9, 3]]), labels=torch.tensor([1])).loss.backward()
        assert all(layer.mask is gate for layer, gate in zip(masked_layers(model).values(), gates, strict=True))


class TestInformation:
    @staticmethod
    def information(model: nn.Module, gradients: list[list[float]], first: int = 1, scale: float = 1.0) -> list[float]:
        """What the scores are after updates with these gradients."""
        (layer,) = masked_layers(model).values()
        for update, gradient in enumerate(gradients, first):
            layer.mask_scores.grad = torch.tensor([gradient])
            gather_information(model, update, scale)
            assert layer.mask_scores.grad is None
        return layer.mask_scores.flatten().tolist()

    def test_the_first_updates_count_alike(self):
        """Their mean, whatever the scores started from: (4 + 16 + 4) / 3, (0 + 1 + 8) / 3."""
        found = self.information(network([[7.0, 9.0]], method="fisher"), [[2.0, 0.0], [4.0, 1.0], [-2.0, 8**0.5]])
        assert found == pytest.approx([8.0, 3.0])

    def test_later_ones_are_forgotten_by_a_fiftieth_each(self):
        """0.98 * 1 + 0.02 * 4."""
        assert self.information(network([[1.0]], method="fisher"), [[2.0]], first=100) == pytest.approx([1.06])

    def test_the_scale_of_the_loss_is_taken_out_and_overflow_left_out(self):
        found = self.information(network([[1.0, 3.0]], method="fisher"), [[2048.0, math.inf]], first=100, scale=1024.0)
        assert found == pytest.approx([1.06, 3.0])


def test_held_masks_stay_while_the_weights_train():
    """Dropout gives some open weights no information in an update. Without `freeze_scores`, zeros take their place."""
    model = tiny_masked.make(method="fisher").train()
    for layer in masked_layers(model).values():
        layer.weight.data[torch.rand_like(layer.weight) > 0.2] = 0.0
        layer.mask_init, layer.mask_scale = "magnitude", 1e-30
        layer.reset_mask_scores()
    before = {name: layer.weight != 0 for name, layer in masked_layers(model).items()}
    start = {name: layer.weight.clone() for name, layer in masked_layers(model).items()}
    kept = sum(int(mask.sum()) for mask in before.values()) / sum(mask.numel() for mask in before.values())
    freeze_scores(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for update in range(1, 4):
        renew_masks(model, kept, global_threshold(model, kept))
        model(torch.tensor([[2, 5, 9, 3]]), labels=torch.tensor([1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        gather_information(model, update)
        assert all(torch.equal(mask, before[name]) for name, mask in masks_of(model).items())
    for name, layer in masked_layers(model).items():
        assert torch.equal(layer.weight != 0, before[name])
        assert not torch.equal(layer.weight, start[name])
