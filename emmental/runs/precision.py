"""Mixed precision by torch.amp."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext

import torch

from emmental.modules.products import fast_products, onednn_is_faster

logger = logging.getLogger(__name__)


def bf16_in_hardware() -> bool:
    """Whether the processor has instructions for bfloat16 (AVX-512 BF16, AMX, or those of Arm)."""
    return any(bool(has) for name, has in torch.cpu.get_capabilities().items() if name.endswith("bf16"))


class Precision:
    """Autocast and loss scaling.

    Args:
        device: where the model computes.
        fp16: autocast to float16, with loss scaling.
        bf16: autocast to bfloat16; its range needs no scaling.
        opt_level: the levels of apex, accepted for old scripts: O1, O2 and O3 are all torch.amp here.

    Attributes:
        dtype: of the autocast; None for float32.
        scaler: the loss scaler; disabled unless `fp16`.
    """

    def __init__(self, device: torch.device, fp16: bool = False, bf16: bool = False, opt_level: str = "O1") -> None:
        self.device = device
        self.dtype = torch.float16 if fp16 else torch.bfloat16 if bf16 else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=fp16)
        if fp16 and opt_level in ("O2", "O3"):
            logger.info("--fp16_opt_level %s: torch.amp knows one level, autocast as in O1", opt_level)

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass, in training and in evaluation."""
        if self.dtype is None:
            return fast_products() if self.device.type == "cpu" and onednn_is_faster() else nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @property
    def pad_to_multiple_of(self) -> int:
        """Lengths are padded to a multiple of this: 8 for the tensor cores of GPUs in mixed precision, else 1."""
        return 8 if self.dtype is not None and self.device.type == "cuda" else 1


def precision_of_answers(device: torch.device, fp16: bool, bf16: bool, scores: bool) -> Precision:
    """The precision in which answers are computed that are kept. Scores have any unit, and 16 bits hold few digits."""
    return Precision(device) if scores else Precision(device, fp16, bf16)
