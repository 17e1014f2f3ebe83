"""Whether a tensor is on the CPU. Some functions compute differently there."""

from __future__ import annotations

from torch import Tensor


def is_on_host(tensor: Tensor) -> bool:
    """Whether the tensor is in CPU memory: reading its values does not wait for a GPU."""
    return tensor.device.type == "cpu"
