"""Tokenised rows on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.methods.stack import Batch


@dataclass
class Rows:
    """Tokenised rows on the device: ids and types int64 (n, T), lengths and labels (n,)."""

    ids: Tensor
    types: Tensor
    lengths: np.ndarray
    labels: Tensor

    def batch(self, rows: np.ndarray) -> Batch:
        """Rows (S, B) of every seed, cut to the longest of them (a multiple of 8)."""
        width = min(-(-int(self.lengths[rows].max()) // 8) * 8, self.ids.shape[1])
        index = torch.as_tensor(rows, device=self.ids.device)
        lengths = torch.as_tensor(self.lengths[rows], device=self.ids.device)
        mask = torch.arange(width, device=self.ids.device) < lengths[..., None]
        return Batch(self.ids[index][..., :width], self.types[index][..., :width], mask.long())
