"""Pruning by the Fisher information of single weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from emmental.methods.method import STRUCTURED, UNSTRUCTURED, Method, RecoveryRecipe, ScoreSource

if TYPE_CHECKING:
    from torch import Tensor, nn

    from emmental.modules.weight_information import Reduce, UsesOfMatrices

INFORMATION_MEMORY = 0.98
"""beta of `Fisher.gather`: the share of the earlier information that an update keeps."""


class Fisher(Method):
    """The weights with the most information stay, all matrices ranked together."""

    name = "fisher"
    scores = ScoreSource.GATHERED
    accepts_global_topk = True
    always_global_topk = True
    updates_between_rankings = 10  # the scores change with every update
    granularities = (UNSTRUCTURED, STRUCTURED)
    cuts_first = True
    recovery = RecoveryRecipe()

    def mask_at(self, source: Tensor, threshold: float) -> Tensor:
        """See `Method`."""
        from emmental.modules.binarizer import topk_mask

        return topk_mask(source, threshold)

    def gather(self, scores: Tensor, update: int, loss_scale: float) -> None:
        """Add the gradients of an update: I <- beta I + (1 - beta) (dL/dm)^2.

        m is the weight's mask, so dL/dm = w dL/d(w m), whether the mask is open or closed. I is w^2 F, with F the mean
        squared gradient: twice the expected rise of the loss if the weight is pruned (Optimal Brain Damage with the
        empirical Fisher information). beta is `INFORMATION_MEMORY`; the first updates have equal weight.
        """
        squared = scores.grad.div_(loss_scale).square_()
        scores.lerp_(squared.where(squared.isfinite(), scores), max(1 - INFORMATION_MEMORY, 1 / update))

    def cut(
        self,
        model: nn.Module,
        uses: Iterable[UsesOfMatrices],
        share: float,
        reduce: Reduce | None = None,
    ) -> None:
        """See `Method`. The weights with the highest w^2 F stay, F the sum over examples of the squared gradient."""
        from emmental.modules.weight_information import keep_most, weight_information

        keep_most(model, weight_information(model, uses, reduce), share)
