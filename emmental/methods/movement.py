"""Movement pruning (Sanh, Wolf and Rush 2020, arXiv 2005.07683)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emmental.methods.method import Method

if TYPE_CHECKING:
    from torch import Tensor


class Movement(Method):
    """The share of each matrix with the highest learned scores stays."""

    name = "topK"
    accepts_global_topk = True

    def mask_at(self, source: Tensor, threshold: float) -> Tensor:
        """See `Method`."""
        from emmental.modules.binarizer import topk_mask

        return topk_mask(source, threshold)
