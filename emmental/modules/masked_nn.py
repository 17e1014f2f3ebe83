"""A linear layer whose weight is multiplied by a mask made from learned scores (or from the weight itself)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.function import once_differentiable
from torch.fx import Proxy
from torch.nn import functional as F
from transformers import initialization as init

from emmental.errors import UserError
from emmental.methods import MASK_INITS, METHODS, Method, canonical_pruning_method
from emmental.modules import devices
from emmental.modules.binarizer import MaskedProduct, as_factor, product_gradients
from emmental.modules.products import input_gradient, linear, weight_gradient
from emmental.modules.scratch import scratch

_NEEDS_PLAIN = (
    "quantization, adapters, tracing and graph export would lose the masks. Make a plain model first, with "
    "python -m emmental.export.bertarize or emmental.patching.unmask_linears(model)"
)
_DECIDES_THE_MASK = ("threshold", "global_threshold", "noise_seed")


class MaskedLinear(nn.Linear):
    """`nn.Linear` with output x (W * M)^T + b; the bias is never pruned.

    Its parameters are those of `nn.Linear` and `mask_scores` of the weight's shape, if the method has scores. Scores
    that the optimizer does not update are updated by `emmental.pruning.gather_information`, from their gradient.

    When masks are made: training that calls `renew_mask` uses that mask until the next call. Other training makes a
    mask from the scores in each forward pass. Evaluation makes the mask once and keeps it. `train()`, `eval()`,
    loading a state dict, and changing the device, dtype or threshold drop the mask. After you edit the scores in
    place in evaluation mode, call `drop_mask`.

    Args:
        in_features, out_features, bias, device, dtype: as for `nn.Linear`.
        pruning_method: one of `emmental.methods.PRUNING_METHODS`.
        mask_init: how scores start, one of `emmental.methods.MASK_INITS`; see `reset_mask_scores`.
        mask_scale: the scale of that start.

    Attributes:
        threshold: fraction kept or score threshold, as `method` says; None keeps all (before pruning).
        global_threshold: (score, ties) of a global top-k, used instead of `threshold`; None without one. For `l0`
            it says where gates open in evaluation.
        noise_seed: seed of the `l0` noise in training, the same on all ranks; None uses PyTorch's generator.

    Raises:
        UserError: unknown `pruning_method` or `mask_init`; or a tool that would lose the mask uses the layer: tracing,
            graph export, quantization, LoRA adapters.
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
        self.global_threshold: tuple[float, int] | None = None
        self.noise_seed: int | None = None
        self._kept: tuple[Tensor, Tensor] | None = None
        if self.method.has_scores:
            self.mask_scores = nn.Parameter(torch.empty_like(self.weight))
            self.reset_mask_scores()
        else:
            self.register_parameter("mask_scores", None)

    @property
    def method(self) -> Method:
        """The class of `pruning_method`."""
        return METHODS[self.pruning_method]

    @torch.no_grad()
    def reset_mask_scores(self) -> None:
        """Set the scores to their start. `magnitude` reads the weight, so call it after the weights are loaded.

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
        mask = self.kept_mask
        return self._mask_for_now() if mask is None else mask

    @property
    def kept_mask(self) -> Tensor | None:
        """The mask kept from `renew_mask` or from this evaluation; None if the next use makes one."""
        if self._kept is None:
            return None
        source, mask = self._kept
        # torch.func.functional_call replaces the parameters by other tensors.
        return mask if torch.compiler.is_compiling() or source is self._source() else None

    def renew_mask(self) -> None:
        """Make the mask from the scores as they are now, and use it until the next call."""
        self._kept = (self._source(), self._make_mask())

    def drop_mask(self) -> None:
        """Drop the mask: the next use makes a new one."""
        self._kept = None

    def masked_weight(self) -> Tensor:
        """W * M, (out_features, in_features), with gradients to the weight and, straight through, to the scores."""
        return MaskedProduct.apply(self.weight, self.mask_scores, self.mask, self.training)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        refuse_tracing(self)
        if isinstance(input, Proxy):  # torch.fx
            raise UserError(_NEEDS_PLAIN)
        # Without gradients the product is that of a plain layer, bit for bit: an exported model gives the same logits.
        plain = not torch.is_grad_enabled() or torch.is_autocast_enabled(input.device.type)
        if plain or torch.compiler.is_compiling():
            return F.linear(input, self.masked_weight(), self.bias)
        return _MaskedLinear.apply(input, self.weight, self.mask_scores, self.bias, self.mask, self.training)

    @property
    def qconfig(self) -> None:
        """PyTorch's quantization sets this on every layer, and would then leave masked layers unquantized."""
        raise AttributeError("qconfig")

    @qconfig.setter
    def qconfig(self, value: object) -> None:
        raise UserError(_NEEDS_PLAIN)

    @property
    def base_layer(self) -> None:
        """PEFT reads this on every layer that gets an adapter. A merged adapter would refill what was pruned."""
        raise UserError(_NEEDS_PLAIN)

    def train(self, mode: bool = True) -> MaskedLinear:
        """As `nn.Module.train`; it drops the mask."""
        self.drop_mask()
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pruning_method={self.pruning_method}, threshold={self.threshold}"

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DECIDES_THE_MASK and value != self.__dict__.get(name):
            self.__dict__["_kept"] = None
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles do not hold the kept mask."""
        return {**self.__dict__, "_kept": None}

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        self.drop_mask()
        super()._load_from_state_dict(*args, **options)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MaskedLinear:
        self.drop_mask()
        return super()._apply(fn, recurse)

    def _source(self) -> Tensor:
        return self.weight if self.mask_scores is None else self.mask_scores

    @_disable_dynamo  # torch.compiler.disable would load Dynamo at once, which takes seconds
    def _mask_for_now(self) -> Tensor:
        mask = self._make_mask()
        if not self.training:
            self._kept = (self._source(), mask)
        return mask

    @torch.no_grad()
    def _make_mask(self) -> Tensor:
        source = self._source()
        return self.method.make_mask(source, self.threshold, self.global_threshold, self.training, self.noise_seed)


def refuse_tracing(model: nn.Module) -> None:
    """Called by the forward pass of a model that may have masked layers.

    Raises:
        UserError: it has masked layers, and torch.jit.trace, torch.export or torch.onnx.export runs the pass.
    """
    traced = torch.jit.is_tracing() or torch.compiler.is_exporting()
    if traced and any(isinstance(module, MaskedLinear) for module in model.modules()):
        raise UserError(_NEEDS_PLAIN)


class _MaskedLinear(torch.autograd.Function):
    """`F.linear(input, MaskedProduct)` that recomputes the product in backward instead of keeping it."""

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
        needs_input, *needs, needs_bias = ctx.needs_input_grad[:4]
        rows = gradient.reshape(-1, gradient.shape[-1])
        for_input = for_weight = for_scores = None
        if needs_input:
            for_input = input_gradient(rows, _product(weight, mask)).view(input.shape)
        if any(needs):
            of_product = weight_gradient(rows, input.reshape(-1, input.shape[-1]))
            for_weight, for_scores = product_gradients(of_product, weight, mask, ctx.training, needs, out=of_product)
        return for_input, for_weight, for_scores, rows.sum(0) if needs_bias else None, None, None


def _product(weight: Tensor, mask: Tensor) -> Tensor:
    """W * M. On a CPU the next product overwrites it."""
    if not devices.is_on_host(weight):
        return weight * as_factor(mask)
    return torch.mul(weight, as_factor(mask), out=scratch(weight.shape, weight.dtype))
