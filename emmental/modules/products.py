"""The three matrix products of a linear layer, computed by the library that is fast on this processor.

PyTorch multiplies float32 matrices with MKL. MKL uses AVX-512 only on Intel processors, and AVX2 on others. oneDNN,
which PyTorch contains too, uses AVX-512 on every processor that has it: twice as many multiplications at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from emmental.modules import devices

_SMALLEST = 64 * 64
"""For matrices with fewer elements, calling oneDNN takes longer than the product."""


class fast_products(TorchFunctionMode):
    """Context in which `F.linear`, and so every `nn.Linear`, uses the fast products, in dense and masked models.

    Only the forward pass must be inside. Parameters, module classes and state dicts stay as they are; results agree
    to rounding. It has no effect under autocast, in compiled code, and where PyTorch's products are as fast.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: dict | None = None
    ) -> Any:
        if func is not F.linear or kwargs or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return func(*args, **(kwargs or {}))
        return _Linear.apply(*args, *[None] * (3 - len(args)))


class _Linear(torch.autograd.Function):
    """`linear` with its gradients."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        return linear(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            input_gradient(rows, weight).view(input.shape) if needs_input else None,
            weight_gradient(rows, input.reshape(-1, input.shape[-1])) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., in), (out, in) and (out,) -> input weight^T + bias (..., out); autograd does not see it."""
    if not _is_for_onednn(input, weight):
        return F.linear(input, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the output (N, out) and weight (out, in) -> gradient of the input (N, in)."""
    return linear(gradient, weight.t())


def weight_gradient(gradient: Tensor, input: Tensor) -> Tensor:
    """Gradient of the output (N, out) and input (N, in) -> gradient of the weight (out, in).

    The rows of a pooler's input, the first tokens, lie far apart: oneDNN would take a thousand times as long for them.
    """
    return linear(gradient.contiguous().t(), input.contiguous().t())


def _is_for_onednn(input: Tensor, weight: Tensor) -> bool:
    return (
        devices.is_on_host(input)
        and input.dtype == weight.dtype == torch.float32
        and weight.numel() >= _SMALLEST
        and input.numel() > 0
        and onednn_is_faster()
    )


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this machine has AVX-512 and MKL does not use it (the maker of the processor is read from Linux)."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
