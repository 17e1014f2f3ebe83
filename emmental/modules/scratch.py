"""Memory for short-lived values.

The system gives large blocks of new CPU memory page by page, which takes longer than the arithmetic on them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

_held = threading.local()


def scratch(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor, valid until this thread calls again for the same dtype: the memory is reused."""
    size = math.prod(shape)
    buffers: dict[torch.dtype, Tensor] = _held.__dict__.setdefault("buffers", {})
    if dtype not in buffers or buffers[dtype].numel() < size:
        with torch.inference_mode(False):
            buffers[dtype] = torch.empty(size, dtype=dtype, device="cpu")
    return buffers[dtype][:size].view(shape)
