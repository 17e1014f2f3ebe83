"""Magnitude pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emmental.methods.method import Method, PruningRecipe, ScoreSource

if TYPE_CHECKING:
    from torch import Tensor


class Magnitude(Method):
    """The share of each matrix with the largest absolute weights stays; there are no scores."""

    name = "magnitude"
    scores = ScoreSource.NONE
    pruning = PruningRecipe(global_topk=False)

    def mask_at(self, source: Tensor, threshold: float) -> Tensor:
        """See `Method`."""
        from emmental.modules.binarizer import magnitude_mask

        return magnitude_mask(source, threshold)
