"""Masks from scores, and the gradients back. The formulas are only here; `emmental.methods` says who uses which.

Movement pruning and its relatives after Sanh, Wolf and Rush 2020 (arXiv 2005.07683); the hard concrete distribution
after Louizos, Welling and Kingma 2018 (arXiv 1712.01312).

The functions return masks without a gradient; the straight-through estimator is only in `product_gradients`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from emmental.errors import UserError
from emmental.modules import devices
from emmental.modules.scratch import scratch

L0_LEFT, L0_RIGHT, L0_TEMPERATURE = -0.1, 1.1, 2 / 3
"""Hard concrete: the gate is stretched to the interval (l, r); b is the temperature."""
_L0_NOISE_MARGIN = 1e-4
_SAMPLE = 2**16
"""Number of scores sampled to guess the lowest one that stays. The guess leaves about 2 % of all scores to search."""


def count_kept(fraction: float, total: int) -> int:
    """floor(fraction * total) of the decimal number that `fraction` prints as: 0.29 of 100 is 29, not 28.

    Raises:
        UserError: the fraction is outside [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise UserError(f"threshold must be a fraction of weights to keep, from 0 to 1, not {fraction}")
    return math.floor(Fraction(repr(float(fraction))) * total)


def minimum_kept(total: int) -> int:
    """Fewest elements that a threshold method keeps: floor(0.005 * total) + 1."""
    return 5 * total // 1000 + 1


def top_mask(scores: Tensor, keep: int) -> Tensor:
    """Bool mask, of the shape of `scores`, of exactly the `keep` highest; ties go to the lowest row-major index.

    Raises:
        UserError: a score is NaN. Only a CPU checks this. A GPU would have to wait for the check; there the mask
            keeps nothing, and the training step's finite check ends the run.
    """
    if keep <= 0:
        return torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if keep >= scores.numel():
        _refuse_nan(scores)
        return torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
    return above_with_ties(scores, *kth_highest(scores, keep))


def kth_highest(scores: Tensor, keep: int) -> tuple[Tensor | float, Tensor | int]:
    """The `keep`-th highest score and how many scores equal to it are among the `keep` highest.

    0 < keep <= number of scores. Selection, not sorting: linear time.
    """
    flat = scores.detach().reshape(-1)
    exact = flat.to(_selectable(flat.dtype))
    if not devices.is_on_host(flat):
        # On an H200, 10 to 80 times as fast as torch.kthvalue, which uses one block of threads.
        lowest = torch.topk(exact, keep, sorted=False).values.min()
        lowest = torch.where(flat.isnan().any(), torch.full_like(lowest, math.nan), lowest).to(flat.dtype)
        return lowest, keep - (flat > lowest).sum()
    _refuse_nan(flat)
    return _selected(scratch(exact.shape, exact.dtype).copy_(exact).numpy(), keep)


def kth_highest_of_all(parts: Sequence[Tensor], keep: int) -> tuple[float, list[int]]:
    """The `keep`-th highest score of all parts together, and how many of each part that equal it are kept.

    0 < keep <= number of scores. Ties go to the earlier part.
    """
    flat = [part.detach().reshape(-1) for part in parts]
    if devices.is_on_host(flat[0]):
        for part in flat:
            _refuse_nan(part)
        near, above = _near_the_lowest(flat, keep)
        lowest, ties = _selected(torch.cat(near).numpy(), keep - above)
    else:
        near = flat
        lowest, ties = (float(value) for value in kth_highest(torch.cat(flat), keep))
    kept, left = [], int(ties)
    for count in torch.stack([torch.count_nonzero(part == lowest) for part in near]).tolist():
        kept.append(min(left, count))
        left -= kept[-1]
    return lowest, kept


def _near_the_lowest(parts: Sequence[Tensor], keep: int) -> tuple[list[Tensor], int]:
    """A few scores of each part, among them the `keep`-th highest of all, and how many scores are higher.

    A sample guesses where that score is. A count checks the guess; if it was wrong, all scores are returned.
    """
    total = sum(part.numel() for part in parts)
    step = max(total // _SAMPLE, 1) | 1
    sample = torch.cat([part[::step] for part in parts]).to(_selectable(parts[0].dtype)).numpy()
    middle, reach = len(sample) * (1 - keep / total), 5 * math.sqrt(len(sample)) / 2  # five standard deviations
    first, last = max(int(middle - reach), 0), min(int(middle + reach), len(sample) - 1)
    sample.partition((first, last))
    low, high = float(sample[first]), float(sample[last])
    near, above = [], 0
    for part in parts:
        higher = part > high
        above += int(torch.count_nonzero(higher))
        near.append(part[(part >= low).logical_xor_(higher)].to(_selectable(part.dtype)))
    if above < keep <= above + sum(part.numel() for part in near):
        return near, above
    return [part.to(_selectable(part.dtype)) for part in parts], 0


def _selected(values: np.ndarray, keep: int) -> tuple[float, int]:
    """The `keep`-th highest value, and how many values equal to it are among the highest. Reorders `values`."""
    position = len(values) - keep
    values.partition(position)
    lowest = float(values[position])
    return lowest, keep - int(np.count_nonzero(values[position:] > lowest))


def _selectable(dtype: torch.dtype) -> torch.dtype:
    """The dtype to select in. NumPy has no bfloat16 and selects slowly in float16; float32 holds both exactly."""
    return dtype if dtype == torch.float64 else torch.float32


def above_with_ties(scores: Tensor, lowest: Tensor | float, ties: Tensor | int) -> Tensor:
    """Bool mask of the scores above `lowest` and of the first `ties`, in flat order, that equal it."""
    flat = scores.detach().reshape(-1)
    if not devices.is_on_host(flat):
        equal = flat == lowest
        return ((flat > lowest) | (equal & (equal.cumsum(0) <= ties))).view(scores.shape)
    mask = flat >= lowest
    equal = torch.eq(flat, lowest, out=scratch(flat.shape, torch.bool))
    if int(torch.count_nonzero(equal)) > ties:
        mask[torch.nonzero(equal).squeeze(-1)[int(ties) :]] = False
    return mask.view(scores.shape)


def topk_mask(scores: Tensor, threshold: float) -> Tensor:
    """Movement pruning: the floor(threshold * n) highest scores."""
    return top_mask(scores, count_kept(threshold, scores.numel()))


def magnitude_mask(weight: Tensor, threshold: float) -> Tensor:
    """Magnitude pruning: the floor(threshold * n) weights of highest absolute value."""
    return topk_mask(weight.detach().abs(), threshold)


def threshold_mask(scores: Tensor, threshold: float, sigmoid: bool) -> Tensor:
    """Soft movement pruning: scores (with `sigmoid`, sigmoid(scores)) above the threshold; at least `minimum_kept`."""
    values = torch.sigmoid(scores.detach()) if sigmoid else scores.detach()
    _refuse_nan(values)
    mask = values > threshold
    fewest = minimum_kept(values.numel())
    if devices.is_on_host(values):
        return mask if int(torch.count_nonzero(mask)) >= fewest else top_mask(scores, fewest)
    return torch.where(torch.count_nonzero(mask) >= fewest, mask, top_mask(scores, fewest))


def hard_concrete_mask(
    scores: Tensor,
    training: bool,
    generator: torch.Generator | None = None,
    global_threshold: tuple[float, int] | None = None,
) -> Tensor:
    """L0 gates in [0, 1], dtype of `scores`: sampled in training, their deterministic form otherwise.

    A global threshold (score, ties) shifts the scores first. The deterministic gate clamp(sigmoid(S) (r - l) + l)
    opens at S = log(-l / r); the shift moves the threshold there. Without noise, a gate is open if its score is above
    the threshold; of the gates whose scores equal it, the first `ties` are open. An open gate is at least the `eps` of
    its dtype, also if rounding gives 0.
    """
    logits = scores.detach()
    if global_threshold is not None:
        logits = logits - (global_threshold[0] - math.log(-L0_LEFT / L0_RIGHT))
    if training:
        low, high = _L0_NOISE_MARGIN, 1 - _L0_NOISE_MARGIN
        noise = torch.empty_like(logits).uniform_(low, high, generator=generator)
        gate = noise.logit_().add_(logits).div_(L0_TEMPERATURE).sigmoid_()
    else:
        gate = torch.sigmoid(logits)
    _refuse_nan(gate)
    gate.mul_(L0_RIGHT - L0_LEFT).add_(L0_LEFT).clamp_(0.0, 1.0)
    if global_threshold is None or training:
        return gate
    return gate.clamp_(min=torch.finfo(gate.dtype).eps).mul_(above_with_ties(scores, *global_threshold))


def hard_concrete_slope(mask: Tensor, training: bool) -> Tensor:
    """Derivative of `hard_concrete_mask` by its scores, from the mask alone; 0 where the gate is clamped."""
    width = L0_RIGHT - L0_LEFT
    gate = (mask - L0_LEFT).div_(width)
    slope = (1 - gate).mul_(gate.mul_(width))
    if training:
        slope.div_(L0_TEMPERATURE)
    return slope.mul_((mask > 0) & (mask < 1))


def _refuse_nan(values: Tensor) -> None:
    if devices.is_on_host(values) and values.numel() and bool(values.max().isnan()):
        raise UserError("mask scores hold NaN: training has diverged, or the checkpoint is damaged")


def as_factor(mask: Tensor) -> Tensor:
    """The mask as a number: PyTorch multiplies by bytes faster than by bools."""
    if mask.dtype != torch.bool or torch.compiler.is_compiling():  # a compiled kernel multiplies by bools as fast
        return mask
    return mask.view(torch.uint8)


def product_gradients(
    gradient: Tensor,
    weight: Tensor,
    mask: Tensor,
    training: bool,
    needs: Sequence[bool],
    out: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the weight and of the scores of W * M, from g, the gradient of the product; all of one shape.

    dW = g * M. dS = g * W for a bool mask, straight through, and g * W * dM/dS for the gates of a hard concrete.

    Args:
        gradient, weight, mask: g, W and M.
        training: whether the hard concrete gates were sampled, as in training.
        needs: whether the weight and whether the scores need a gradient; None is returned for what does not.
        out: memory for dW; may be `gradient` itself.
    """
    for_scores = gradient * weight if needs[1] else None
    if for_scores is not None and mask.is_floating_point():
        for_scores = for_scores.mul_(hard_concrete_slope(mask, training))
    return torch.mul(gradient, as_factor(mask), out=out) if needs[0] else None, for_scores


class MaskedProduct(torch.autograd.Function):
    """`apply(weight, scores, mask, training)` -> weight * mask; gradients: `product_gradients`."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, weight: Tensor, scores: Tensor | None, mask: Tensor, training: bool
    ) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.training = training
        return weight * as_factor(mask)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, mask = ctx.saved_tensors
        return *product_gradients(gradient, weight, mask, ctx.training, ctx.needs_input_grad[:2]), None, None


def _with_gradient(mask: Tensor, scores: Tensor) -> Tensor:
    """The mask in the dtype of the scores; its gradient goes to the scores unchanged."""
    return MaskedProduct.apply(torch.ones_like(scores), scores, mask, False)


class TopKBinarizer:
    """`apply(scores, threshold)`: mask (shape and dtype of scores) of the floor(threshold * n) highest scores."""

    @staticmethod
    def apply(scores: Tensor, threshold: float) -> Tensor:
        """See the class; the gradient goes straight through to the scores."""
        return _with_gradient(topk_mask(scores, threshold), scores)


class ThresholdBinarizer:
    """`apply(scores, threshold, sigmoid)`: mask (shape and dtype of scores): score, or sigmoid, above it."""

    @staticmethod
    def apply(scores: Tensor, threshold: float, sigmoid: bool) -> Tensor:
        """See the class; the gradient goes straight through to the scores."""
        return _with_gradient(threshold_mask(scores, threshold, sigmoid), scores)


class MagnitudeBinarizer:
    """`apply(weight, threshold)`: mask (shape and dtype of weight) of the highest magnitudes; it has no gradient."""

    @staticmethod
    def apply(weight: Tensor, threshold: float) -> Tensor:
        """See the class."""
        return magnitude_mask(weight, threshold).to(weight.dtype)
