"""A linear layer whose weight is multiplied by a mask made from learned scores (or from the weight itself)."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import initialization as init

from emmental.errors import UserError
from emmental.modules import devices
from emmental.modules.binarizer import (
    above_with_ties,
    hard_concrete_mask,
    hard_concrete_slope,
    magnitude_mask,
    threshold_mask,
    topk_mask,
)
from emmental.modules.products import input_gradient, linear, weight_gradient
from emmental.modules.scratch import scratch

PRUNING_METHODS = ("topK", "threshold", "sigmoied_threshold", "magnitude", "l0")
MASK_INITS = ("constant", "uniform", "kaiming", "magnitude")
FRACTION_METHODS = ("topK", "magnitude")
"""Methods whose threshold is the fraction of weights that stay."""

_optimizer_steps = 0


def _note_optimizer_step(*_: Any) -> None:
    """Fused optimizers write parameters without moving their version counter: masks go by this counter besides."""
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_note_optimizer_step)


class _KeptMask(NamedTuple):
    """A mask and what it was made from. A new parameter may get the memory of a freed one: identity counts too."""

    source: weakref.ref[nn.Parameter]
    key: tuple[Any, ...]
    mask: Tensor


def canonical_pruning_method(name: str) -> str:
    """The spelling used throughout: `sigmoid_threshold` is accepted for `sigmoied_threshold`.

    Raises:
        UserError: an unknown method.
    """
    name = "sigmoied_threshold" if name == "sigmoid_threshold" else name
    if name not in PRUNING_METHODS:
        raise UserError(f"pruning_method must be one of {', '.join(PRUNING_METHODS)}, not {name!r}")
    return name


class MaskedLinear(nn.Linear):
    """`nn.Linear` with output x (W * M)^T + b; the bias is never pruned.

    Parameters are those of `nn.Linear` and, except for `magnitude`, `mask_scores` of the weight's shape. The mask is
    made on first use and kept until something it depends on changes: scores (or, for `magnitude`, weights) replaced
    or written in place, threshold, device, dtype, training or evaluation mode of `l0`. A write through `.data` leaves
    no trace in PyTorch: call `forget_masks` after one.

    Args:
        in_features, out_features, bias, device, dtype: as for `nn.Linear`.
        pruning_method: one of `PRUNING_METHODS`.
        mask_init: how scores start, one of `MASK_INITS`; see `reset_mask_scores`.
        mask_scale: the scale of that start.

    Attributes:
        threshold: fraction kept (`topK`, `magnitude`) or score threshold; None keeps every weight (before pruning).
        boundary: (score, ties) of a global top-k, which then decides in the place of `threshold`; None without one.
        noise_seed: seed of the `l0` noise in training, so that all ranks draw alike; None takes PyTorch's generator.

    Raises:
        UserError: unknown `pruning_method` or `mask_init`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        pruning_method: str = "topK",
        mask_init: str = "constant",
        mask_scale: float = 0.0,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        if mask_init not in MASK_INITS:
            raise UserError(f"mask_init must be one of {', '.join(MASK_INITS)}, not {mask_init!r}")
        self.pruning_method = canonical_pruning_method(pruning_method)
        self.mask_init = mask_init
        self.mask_scale = mask_scale
        self.threshold: float | None = None
        self.boundary: tuple[float, int] | None = None
        self.noise_seed: int | None = None
        self._kept: dict[bool, _KeptMask] = {}
        if self.pruning_method == "magnitude":
            self.register_parameter("mask_scores", None)
        else:
            self.mask_scores = nn.Parameter(torch.empty_like(self.weight))
            self.reset_mask_scores()

    @torch.no_grad()
    def reset_mask_scores(self) -> None:
        """Start the scores as asked; `magnitude` reads the weight, so it runs after weights are loaded.

        constant: `mask_scale`. uniform: in [-mask_scale, mask_scale]. kaiming: uniform with a = sqrt(5).
        magnitude: `mask_scale` * abs(W) / std(W).
        """
        if self.mask_scores is None or self.mask_scores.is_meta:
            return
        if self.mask_init == "constant":
            init.constant_(self.mask_scores, self.mask_scale)
        elif self.mask_init == "uniform":
            init.uniform_(self.mask_scores, a=-self.mask_scale, b=self.mask_scale)
        elif self.mask_init == "kaiming":
            init.kaiming_uniform_(self.mask_scores, a=math.sqrt(5))
        else:
            init.copy_(self.mask_scores, self.mask_scale * self.weight.abs() / self.weight.std().clamp_min(1e-12))

    @property
    def mask(self) -> Tensor:
        """The mask in use, (out_features, in_features): bool, or gates in [0, 1] of the weight's dtype for `l0`."""
        kept = self._kept.get(self.training)
        if kept is not None and torch.compiler.is_compiling():
            return kept.mask
        source, key = self._source(), self._mask_key()
        if kept is None or kept.source() is not source or kept.key != key:
            kept = self._kept[self.training] = _KeptMask(weakref.ref(source), key, self._make_mask())
        return kept.mask

    @property
    def kept_mask(self) -> Tensor | None:
        """The mask last used in this mode, up to date or not; None before the first use."""
        kept = self._kept.get(self.training)
        return None if kept is None else kept.mask

    def forget_masks(self) -> None:
        """Make the mask anew at the next use."""
        self._kept.clear()

    def masked_weight(self) -> Tensor:
        """W * M, (out_features, in_features), with gradients to the weight and, straight through, to the scores."""
        if self.pruning_method == "l0":
            return _GatedWeight.apply(self.weight, self.mask_scores, self.mask, self.training)
        return _MaskedWeight.apply(self.weight, self.mask_scores, self.mask)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        # Without gradients the product is that of a plain layer, bit for bit: an exported model gives the same logits.
        plain = not torch.is_grad_enabled() or torch.is_autocast_enabled(input.device.type)
        if plain or torch.compiler.is_compiling():
            return F.linear(input, self.masked_weight(), self.bias)
        return _MaskedLinear.apply(input, self.weight, self.mask_scores, self.bias, self.mask, self.training)

    def train(self, mode: bool = True) -> MaskedLinear:
        """As `nn.Module.train`; going back to training frees the mask kept for evaluation."""
        if mode:
            self._kept.pop(False, None)
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pruning_method={self.pruning_method}, threshold={self.threshold}"

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles go without the kept masks."""
        return {**self.__dict__, "_kept": {}}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedLinear:
        # Moves replace the data of a parameter that stays the same object, with the same version.
        self.forget_masks()
        return super()._apply(fn, recurse)

    def _source(self) -> nn.Parameter:
        return self.weight if self.mask_scores is None else self.mask_scores

    def _mask_key(self) -> tuple[Any, ...]:
        source = self._source()
        version = object() if source.is_inference() else (source._version, _optimizer_steps)
        noise = self.noise_seed if self.pruning_method == "l0" and self.training else None
        return source.data_ptr(), version, source.device, source.dtype, self.threshold, self.boundary, noise

    @torch.no_grad()
    def _make_mask(self) -> Tensor:
        source, threshold = self._source(), self.threshold
        if self.pruning_method == "l0":
            generator = None
            if self.training and self.noise_seed is not None:
                generator = torch.Generator(source.device).manual_seed(self.noise_seed)
            return hard_concrete_mask(source, self.training, generator)
        if self.boundary is not None:
            return above_with_ties(source, *self.boundary)
        if threshold is None:
            return torch.ones(source.shape, dtype=torch.bool, device=source.device)
        if self.pruning_method == "topK":
            return topk_mask(source, threshold)
        if self.pruning_method == "magnitude":
            return magnitude_mask(source, threshold)
        return threshold_mask(source, threshold, sigmoid=self.pruning_method == "sigmoied_threshold")


class _MaskedLinear(torch.autograd.Function):
    """input (weight * mask)^T + bias. The product of weight and mask is made again in backward, not kept.

    With g the gradient to that product: dW = g * M; dS = g * W for a bool mask, straight through, and g * W * dM/dS
    for the gates of a hard concrete.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        input: Tensor,
        weight: Tensor,
        scores: Tensor | None,
        bias: Tensor | None,
        mask: Tensor,
        training: bool,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, mask)
        ctx.training = training
        return linear(input, _product(weight, mask), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mask = ctx.saved_tensors
        needs_input, needs_weight, needs_scores, needs_bias = ctx.needs_input_grad[:4]
        rows = gradient.reshape(-1, gradient.shape[-1])
        for_input = for_weight = for_scores = None
        if needs_input:
            for_input = input_gradient(rows, _product(weight, mask)).view(input.shape)
        if needs_weight or needs_scores:
            for_weight = weight_gradient(rows, input.reshape(-1, input.shape[-1]))
        if needs_scores:
            for_scores = for_weight * weight
            if mask.is_floating_point():
                for_scores.mul_(hard_concrete_slope(mask, ctx.training))
        for_weight = for_weight.mul_(_factor(mask)) if needs_weight else None
        return for_input, for_weight, for_scores, rows.sum(0) if needs_bias else None, None, None


def _product(weight: Tensor, mask: Tensor) -> Tensor:
    """W * M; on a CPU in memory that the next product overwrites."""
    if not devices.is_on_host(weight):
        return weight * _factor(mask)
    return torch.mul(weight, _factor(mask), out=scratch(weight.shape, weight.dtype))


def _factor(mask: Tensor) -> Tensor:
    """The mask as a number: PyTorch multiplies by bytes faster than by bools."""
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask


class _MaskedWeight(torch.autograd.Function):
    """weight * mask for a bool mask; the scores get the mask's gradient unchanged: dW = g * M, dS = g * W."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, weight: Tensor, scores: Tensor | None, mask: Tensor
    ) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight * mask.view(torch.uint8)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, mask = ctx.saved_tensors
        for_weight = gradient * mask.view(torch.uint8) if ctx.needs_input_grad[0] else None
        for_scores = gradient * weight if ctx.needs_input_grad[1] else None
        return for_weight, for_scores, None


class _GatedWeight(torch.autograd.Function):
    """weight * gate for hard concrete gates: dW = g * M, dS = g * W * dM/dS."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, weight: Tensor, scores: Tensor, gate: Tensor, training: bool
    ) -> Tensor:
        ctx.save_for_backward(weight, gate)
        ctx.training = training
        return weight * gate

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, gate = ctx.saved_tensors
        for_weight = gradient * gate if ctx.needs_input_grad[0] else None
        for_scores = None
        if ctx.needs_input_grad[1]:
            for_scores = hard_concrete_slope(gate, ctx.training).mul_(weight).mul_(gradient)
        return for_weight, for_scores, None, None
