"""MaskedLinear: output and gradients by hand, one mask per change, never a stale one."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from emmental.methods import PRUNING_METHODS, canonical_pruning_method
from emmental.modules import MaskedLinear, ThresholdBinarizer, TopKBinarizer, binarizer
from emmental.modules.binarizer import hard_concrete_mask

THRESHOLDS = dict.fromkeys(PRUNING_METHODS, 0.4) | {"threshold": 0.1, "sigmoied_threshold": 0.55, "l0": None}


def layer(method: str = "topK", seed: int = 0, size: tuple[int, int] = (5, 4), **options: object) -> MaskedLinear:
    """A masked layer (in, out) with random weights and normal scores, at the method's threshold above."""
    torch.manual_seed(seed)
    masked = MaskedLinear(*size, pruning_method=method, **options)
    masked.threshold = THRESHOLDS[method]
    if masked.mask_scores is not None:
        nn.init.normal_(masked.mask_scores)
    return masked


def differentiable_mask(masked: MaskedLinear, scores: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The mask in plain autograd operations."""
    if masked.method.by_share and masked.method.has_scores:
        return TopKBinarizer.apply(scores, masked.threshold)
    if masked.pruning_method == "magnitude":
        size = weight.detach().abs().flatten()
        return (size >= size.sort(descending=True).values[int(0.4 * size.numel()) - 1]).view_as(weight).to(weight)
    if masked.pruning_method != "l0":
        return ThresholdBinarizer.apply(scores, masked.threshold, masked.pruning_method == "sigmoied_threshold")
    gate = torch.sigmoid(scores)
    if masked.training:
        noise = torch.empty_like(scores)
        noise.uniform_(1e-4, 1 - 1e-4, generator=torch.Generator().manual_seed(masked.noise_seed))
        gate = torch.sigmoid((noise.log() - torch.log1p(-noise) + scores) / (2 / 3))
    return (gate * 1.2 - 0.1).clamp(0, 1)


class Counter:
    """A mask function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.function(*args, **kwargs)


@pytest.fixture
def count(monkeypatch):
    """Replace a mask function by one that counts."""

    def replace(name: str) -> Counter:
        counter = Counter(getattr(binarizer, name))
        monkeypatch.setattr(binarizer, name, counter)
        return counter

    return replace


def is_current(masked: MaskedLinear) -> bool:
    """Whether the mask in use is the one that a layer without any memory makes."""
    used = masked.mask.clone()
    fresh = copy.deepcopy(masked)
    fresh.drop_mask()
    return torch.equal(used, fresh.mask)


class TestFormula:
    def test_by_hand(self):
        masked = MaskedLinear(2, 2)
        with torch.no_grad():
            masked.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
            masked.bias.copy_(torch.tensor([10.0, 20.0]))
            masked.mask_scores.copy_(torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
        masked.threshold = 0.5
        assert masked.mask.tolist() == [[True, False], [False, True]]
        assert masked(torch.tensor([[1.0, 1.0], [2.0, 3.0]])).tolist() == [[11.0, 24.0], [12.0, 32.0]]

    @pytest.mark.parametrize("method", PRUNING_METHODS)
    @pytest.mark.parametrize("training", [True, False])
    def test_output_and_gradients_equal_plain_autograd(self, method, training):
        masked = layer(method).double()
        masked.noise_seed = 17
        masked.train(training)
        x = torch.randn(3, 5, dtype=torch.float64)
        upstream = torch.randn(3, 4, dtype=torch.float64)
        plain = {name: p.detach().clone().requires_grad_() for name, p in masked.named_parameters()}

        masked(x).backward(upstream)
        mask = differentiable_mask(masked, plain.get("mask_scores"), plain["weight"])
        expected = x @ (plain["weight"] * mask).T + plain["bias"]
        expected.backward(upstream)

        assert torch.allclose(masked(x), expected, atol=1e-12)
        for name, parameter in masked.named_parameters():
            assert torch.allclose(parameter.grad, plain[name].grad, atol=1e-12), name
        if method == "magnitude":
            assert set(plain) == {"weight", "bias"}

    def test_gradients_of_weight_and_scores_by_hand(self):
        """With g = upstream^T x the gradient to W * M: dW = g M and dS = g W, pruned scores included."""
        masked = layer("topK")
        x, upstream = torch.randn(7, 5), torch.randn(7, 4)
        masked(x).backward(upstream)
        g = upstream.T @ x
        assert torch.allclose(masked.weight.grad, g * masked.mask, atol=1e-6)
        assert torch.allclose(masked.mask_scores.grad, g * masked.weight, atol=1e-6)
        assert int((masked.mask_scores.grad != 0).sum()) == 20

    def test_layers_that_share_scratch_memory_keep_their_own_weights(self):
        """Backward makes W * M again: the product of the layer that came later is not taken for it."""
        first, second = layer("topK", seed=0, size=(4, 4)), layer("topK", seed=1, size=(4, 4))
        x = torch.randn(3, 4, requires_grad=True)
        second(first(x)).sum().backward()
        plain = torch.ones(3, 4) @ (second.weight * second.mask) @ (first.weight * first.mask)
        assert torch.allclose(x.grad, plain, atol=1e-6)

    def test_frozen_weight_or_scores_get_no_gradient(self):
        masked = layer("topK")
        masked.weight.requires_grad_(False)
        masked(torch.ones(1, 5)).sum().backward()
        assert masked.weight.grad is None
        assert masked.mask_scores.grad is not None

    def test_leading_dimensions_and_no_bias(self):
        masked = layer("topK", bias=False)
        x = torch.randn(2, 3, 5)
        assert masked(x).shape == (2, 3, 4)
        assert torch.allclose(masked(x), F.linear(x, masked.weight * masked.mask))

    def test_autocast_equals_a_plain_layer_of_the_masked_weight(self):
        masked = layer("topK")
        x = torch.randn(2, 5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = masked(x)
            expected = F.linear(x, masked.weight * masked.mask, masked.bias)
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, expected)

    @pytest.mark.parametrize("method", ["topK", "threshold", "sigmoied_threshold", "magnitude", "l0"])
    def test_autocast_makes_the_same_mask(self, method):
        """Scores stay float32, so equal scores give equal masks, in training too."""
        masked = layer(method)
        masked.noise_seed = 3
        plain = masked.masked_weight()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(masked.masked_weight(), plain)
        assert 0 < plain.count_nonzero() < plain.numel()

    def test_without_a_threshold_nothing_is_pruned(self):
        for method in ("topK", "threshold", "sigmoied_threshold", "magnitude"):
            masked = layer(method)
            masked.threshold = None
            assert bool(masked.mask.all()), method

    def test_a_global_threshold_decides_in_the_place_of_the_threshold(self):
        masked = MaskedLinear(3, 1)
        with torch.no_grad():
            masked.mask_scores.copy_(torch.tensor([[1.0, 2.0, 1.0]]))
        masked.threshold, masked.global_threshold = 1.0, (1.0, 1)
        assert masked.mask.tolist() == [[True, True, False]]
        masked.global_threshold = (1.0, 0)
        assert masked.mask.tolist() == [[False, True, False]]

    def test_nan_scores_raise(self):
        masked = layer("topK")
        with torch.no_grad():
            masked.mask_scores[0, 0] = math.nan
        with pytest.raises(ValueError, match="NaN"):
            masked(torch.ones(1, 5))


class TestStart:
    def test_constant(self):
        assert MaskedLinear(6, 7, mask_init="constant", mask_scale=2.197).mask_scores.unique().tolist() == [
            pytest.approx(2.197)
        ]

    def test_uniform(self):
        torch.manual_seed(0)
        scores = MaskedLinear(50, 60, mask_init="uniform", mask_scale=0.3).mask_scores.detach()
        assert float(scores.abs().max()) <= 0.3
        assert float(scores.std()) == pytest.approx(0.3 / math.sqrt(3), rel=0.05)

    def test_kaiming(self):
        """Kaiming uniform with a = sqrt(5): bound sqrt(6 / ((1 + 5) fan_in)) = 1 / sqrt(fan_in)."""
        torch.manual_seed(0)
        scores = MaskedLinear(64, 80, mask_init="kaiming").mask_scores.detach()
        assert float(scores.abs().max()) <= 1 / 8
        assert float(scores.abs().max()) > 0.99 / 8
        assert float(scores.std()) == pytest.approx(1 / (8 * math.sqrt(3)), rel=0.05)

    def test_magnitude(self):
        torch.manual_seed(0)
        masked = MaskedLinear(9, 8, mask_init="magnitude", mask_scale=0.5)
        assert torch.allclose(masked.mask_scores, 0.5 * masked.weight.abs() / masked.weight.std())

    def test_magnitude_of_a_zero_matrix_is_zero(self):
        masked = MaskedLinear(3, 3, mask_init="magnitude", mask_scale=1.0)
        nn.init.zeros_(masked.weight)
        masked.reset_mask_scores()
        assert masked.mask_scores.unique().tolist() == [0.0]

    def test_magnitude_pruning_has_no_scores(self):
        masked = MaskedLinear(3, 3, pruning_method="magnitude")
        assert masked.mask_scores is None
        assert list(masked.state_dict()) == ["weight", "bias"]

    def test_unknown_names_are_refused_with_the_known_ones(self):
        with pytest.raises(ValueError, match=r"pruning_method must be one of topK, .*, not 'top'"):
            MaskedLinear(3, 3, pruning_method="top")
        with pytest.raises(ValueError, match=r"mask_init must be one of constant, .*, not 'zeros'"):
            MaskedLinear(3, 3, mask_init="zeros")

    def test_both_spellings_of_soft_movement(self):
        assert canonical_pruning_method("sigmoid_threshold") == "sigmoied_threshold"
        assert MaskedLinear(3, 3, pruning_method="sigmoid_threshold").pruning_method == "sigmoied_threshold"

    def test_representation_names_method_and_threshold(self):
        assert "pruning_method=topK, threshold=0.4" in repr(layer("topK"))


MASK_FUNCTIONS = {
    "topK": "topk_mask",
    "threshold": "threshold_mask",
    "sigmoied_threshold": "threshold_mask",
    "magnitude": "magnitude_mask",
    "l0": "hard_concrete_mask",
    "fisher": "topk_mask",
}


class TestWhenMasksAreMade:
    @pytest.mark.parametrize(("method", "function"), MASK_FUNCTIONS.items())
    def test_a_renewed_mask_serves_all_micro_batches_of_an_update(self, count, method, function):
        masked = layer(method)
        counter = count(function)
        optimizer = torch.optim.AdamW(masked.parameters(), lr=0.1)
        for update in range(3):
            masked.renew_mask()
            for _ in range(4):
                masked(torch.randn(2, 5)).square().mean().backward()
            assert counter.calls == update + 1
            optimizer.step()
            optimizer.zero_grad()

    @pytest.mark.parametrize(("method", "function"), MASK_FUNCTIONS.items())
    def test_a_training_that_renews_none_gets_one_in_each_forward_pass(self, count, method, function):
        masked = layer(method)
        counter = count(function)
        for _ in range(3):
            masked(torch.randn(2, 5)).sum().backward()
        assert counter.calls == 3
        assert masked.kept_mask is None

    def test_one_mask_for_a_whole_evaluation(self, count):
        masked = layer("topK").eval()
        counter = count("topk_mask")
        with torch.no_grad():
            for _ in range(5):
                masked(torch.randn(2, 5))
        assert counter.calls == 1

    @pytest.mark.parametrize("switch", [nn.Module.train, nn.Module.eval])
    def test_train_and_eval_drop_it(self, switch):
        masked = layer("topK")
        masked.renew_mask()
        switch(nn.Sequential(masked))
        assert masked.kept_mask is None

    def test_a_renewed_mask_stays_while_scores_change(self):
        masked = layer("topK")
        masked.renew_mask()
        used = masked.mask
        with torch.no_grad():
            masked.mask_scores.neg_()
        assert masked.mask is masked.kept_mask is used
        masked.renew_mask()
        assert not torch.equal(masked.mask, used)

    def test_the_same_threshold_again_keeps_it_and_another_drops_it(self):
        masked = layer("topK").eval()
        used = masked.mask
        masked.threshold = 0.4
        assert masked.mask is used
        masked.threshold = 0.2
        assert masked.kept_mask is None


class TestNeverStale:
    @pytest.mark.parametrize("method", ["topK", "threshold", "sigmoied_threshold", "magnitude"])
    @pytest.mark.parametrize(
        "optimizer",
        [
            lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
            lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
            lambda p: torch.optim.SGD(p, lr=100.0),
            lambda p: torch.optim.SGD(p, lr=100.0, fused=True),
        ],
        ids=["fused AdamW", "foreach AdamW", "SGD", "fused SGD"],
    )
    def test_after_an_optimizer_step(self, method, optimizer):
        masked = layer(method, size=(12, 12))
        stepper = optimizer(list(masked.parameters()))
        before = masked.mask.clone()
        (masked(torch.randn(3, 12)) * torch.randn(3, 12)).sum().backward()
        stepper.step()
        assert is_current(masked)
        assert not torch.equal(masked.mask, before)

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("assign", [True, False])
    def test_after_loading_a_state_dict(self, training, assign):
        masked, other = layer("topK", seed=0).train(training), layer("topK", seed=1)
        masked.renew_mask()
        before = masked.mask.clone()
        masked.load_state_dict(other.state_dict(), assign=assign)
        assert masked.threshold == 0.4
        assert torch.equal(masked.mask, other.mask)
        assert not torch.equal(masked.mask, before)

    def test_after_a_change_of_threshold(self):
        masked = layer("topK")
        for threshold, kept in ((0.4, 8), (0.2, 4), (0.0, 0), (None, 20), (1.0, 20)):
            masked.threshold = threshold
            assert int(masked.mask.sum()) == kept

    @pytest.mark.parametrize(
        "edit",
        [
            lambda p: p.neg_(),
            lambda p: p.copy_(-p.detach()),
            lambda p: p[0].fill_(9.0),
            lambda p: p.detach().mul_(-1),
            lambda p: nn.init.uniform_(p, -5, 5),
        ],
        ids=["neg_", "copy_", "slice", "through detach", "init"],
    )
    def test_after_an_edit_in_place(self, edit):
        masked = layer("topK")
        before = masked.mask.clone()
        with torch.no_grad():
            edit(masked.mask_scores)
        assert is_current(masked)
        assert not torch.equal(masked.mask, before)

    def test_after_a_write_in_evaluation_and_drop_mask(self):
        masked = layer("topK").eval()
        before = masked.mask.clone()
        masked.mask_scores.data.neg_()
        masked.drop_mask()
        assert not torch.equal(masked.mask, before)
        assert is_current(masked)

    def test_after_new_scores_in_the_memory_of_the_old(self):
        masked = MaskedLinear(384, 384).eval()
        masked.threshold = 0.5
        halves = torch.zeros(2, 384, 384)
        halves[0, :192] = 1.0
        halves[1, 192:] = 1.0
        for turn in range(20):
            _ = masked.mask
            masked.mask_scores = None
            masked.mask_scores = nn.Parameter(halves[turn % 2].clone())
            assert torch.equal(masked.mask, halves[turn % 2] > 0)

    def test_magnitude_follows_the_weight_and_movement_does_not(self):
        for method, changes in (("magnitude", True), ("topK", False)):
            masked = layer(method)
            before = masked.mask.clone()
            with torch.no_grad():
                masked.weight.copy_(masked.weight.flip(0, 1))
            assert torch.equal(masked.mask, before) != changes

    def test_l0_is_sampled_in_training_and_fixed_in_evaluation(self):
        masked = layer("l0").train()
        sampled = masked.mask.clone()
        masked.eval()
        assert torch.equal(masked.mask, hard_concrete_mask(masked.mask_scores, training=False))
        assert not torch.equal(masked.mask, sampled)

    def test_l0_noise_follows_its_seed(self):
        masked = layer("l0").train()
        masked.noise_seed = 1
        first = masked.mask.clone()
        masked.noise_seed = 2
        second = masked.mask.clone()
        masked.noise_seed = 1
        assert not torch.equal(first, second)
        assert torch.equal(masked.mask, first)

    def test_after_a_change_of_dtype(self):
        masked = layer("l0").eval()
        assert masked.mask.dtype == torch.float32
        masked.double()
        assert masked.mask.dtype == torch.float64
        assert masked(torch.ones(1, 5, dtype=torch.float64)).dtype == torch.float64
        movement = layer("topK").eval()
        _ = movement.mask
        movement.half()
        assert movement.kept_mask is None
        assert int(movement.mask.sum()) == 8

    def test_after_a_move_to_another_device(self):
        masked = layer("topK")
        masked.renew_mask()
        masked.to("meta")
        assert masked.kept_mask is None
        masked.to_empty(device="cpu")
        nn.init.zeros_(masked.mask_scores)
        assert masked.mask.view(-1).tolist() == [True] * 8 + [False] * 12

    def test_copies_have_their_own_masks(self):
        masked = layer("topK")
        original = masked.mask.clone()
        duplicate = copy.deepcopy(masked)
        with torch.no_grad():
            duplicate.mask_scores.neg_()
        assert torch.equal(masked.mask, original)
        assert not torch.equal(duplicate.mask, original)
        assert is_current(duplicate)

    def test_copies_come_without_a_mask_until_they_need_one(self):
        masked = layer("topK")
        masked.renew_mask()
        duplicate = copy.deepcopy(masked)
        assert duplicate.kept_mask is None
        assert torch.equal(duplicate.mask, masked.mask)

    def test_inference_tensors(self):
        with torch.inference_mode():
            masked = layer("topK").eval()
            assert masked.mask_scores.is_inference()
            before = masked.mask.clone()
            masked.mask_scores.neg_()
            masked.drop_mask()
            assert not torch.equal(masked.mask, before)

    def test_ordinary_parameters_under_inference_mode(self):
        masked = layer("topK").eval()
        x = torch.randn(2, 5)
        with torch.inference_mode():
            output = masked(x)
        masked.train()
        trained = masked(x)
        trained.sum().backward()
        assert torch.equal(output, trained)
        assert masked.mask_scores.grad is not None

    def test_functional_calls_use_the_tensors_they_are_given(self):
        masked = layer("topK", size=(64, 64)).eval()
        x = torch.randn(2, 64)
        for seed in range(6):
            scores = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
            output = torch.func.functional_call(masked, {"mask_scores": scores}, x)
            expected = F.linear(x, masked.weight * TopKBinarizer.apply(scores, 0.4), masked.bias)
            assert torch.allclose(output, expected, atol=1e-6)
            del scores


def test_without_gradients_the_output_has_the_bits_of_a_plain_layer() -> None:
    torch.manual_seed(0)
    layer = MaskedLinear(96, 128, mask_init="uniform", mask_scale=1.0)
    layer.threshold = 0.3
    plain = torch.nn.Linear(96, 128)
    plain.load_state_dict({"weight": layer.weight * layer.mask, "bias": layer.bias.detach()})
    input = torch.randn(7, 96)
    with torch.no_grad():
        assert torch.equal(layer(input), plain(input))
