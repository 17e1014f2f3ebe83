"""The three matrix products of a linear layer, by the library that is fast on this processor.

PyTorch multiplies float32 matrices by MKL, which keeps to AVX2 on processors of other makers than Intel. oneDNN, which
PyTorch holds as well, uses AVX-512 on all that have it: twice as many multiplications at a time.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from emmental.modules import devices

_SMALLEST = 64 * 64
"""Matrices with fewer elements are multiplied sooner than oneDNN is called."""


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., in), (out, in) and (out,) -> input weight^T + bias (..., out); autograd does not see it."""
    if not _is_for_onednn(input, weight):
        return F.linear(input, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def input_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the output (N, out) and weight (out, in) -> gradient of the input (N, in)."""
    return linear(gradient, weight.t())


def weight_gradient(gradient: Tensor, input: Tensor) -> Tensor:
    """Gradient of the output (N, out) and input (N, in) -> gradient of the weight (out, in)."""
    return linear(gradient.t(), input.t())


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
    """Whether this machine has AVX-512 that MKL leaves unused (Linux tells the processor's maker)."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
