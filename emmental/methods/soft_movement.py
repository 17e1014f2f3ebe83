"""Soft movement pruning (Sanh, Wolf and Rush 2020, arXiv 2005.07683): a threshold of the scores, for all matrices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from emmental.methods.method import Method, ThresholdMeaning

if TYPE_CHECKING:
    from torch import Tensor


class ScoreThreshold(Method):
    """Weights stay whose learned score is above the threshold."""

    name = "threshold"
    threshold = ThresholdMeaning.SCORE
    threshold_limits = (-math.inf, math.inf)
    threshold_accepts = "a score above which weights stay"
    default_thresholds = (0.0, 0.1)
    accepts_global_topk = True

    def mask_at(self, source: Tensor, threshold: float) -> Tensor:
        """See `Method`. At least `emmental.modules.binarizer.minimum_kept` stay."""
        from emmental.modules.binarizer import threshold_mask

        return threshold_mask(source, threshold, sigmoid=False)


class SoftMovement(Method):
    """Weights stay whose learned score has a sigmoid above the threshold."""

    name = "sigmoied_threshold"
    spellings = ("sigmoid_threshold",)
    threshold = ThresholdMeaning.SCORE
    threshold_accepts = "a number from 0 to 1"
    default_thresholds = (0.0, 0.1)

    def threshold_problem(self, value: float) -> str | None:
        """See `Method`."""
        accepted = 0 <= value < 1
        return None if accepted else f"is compared with sigmoid(scores) and accepts 0 up to below 1, not {value}"

    def mask_at(self, source: Tensor, threshold: float) -> Tensor:
        """See `Method`. At least `emmental.modules.binarizer.minimum_kept` stay."""
        from emmental.modules.binarizer import threshold_mask

        return threshold_mask(source, threshold, sigmoid=True)
