"""The optimal brain surgeon (Kurtic et al. 2022, arXiv 2203.07259)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from emmental.methods.fisher import Fisher
from emmental.methods.method import UNSTRUCTURED

if TYPE_CHECKING:
    from torch import nn

    from emmental.modules.weight_information import Reduce, UsesOfMatrices

BLOCK = 50
"""Weights that are pruned and changed together."""


class BrainSurgeon(Fisher):
    """Prunes before training alone, and changes the weights that stay to make up for the pruned ones."""

    name = "brain_surgeon"
    granularities = (UNSTRUCTURED,)
    bytes_a_weight = 4 * BLOCK  # the inverse information

    @property
    def masked_name(self) -> str:
        """What stays is trained as with `Fisher`."""
        return Fisher.name

    def cut(
        self,
        model: nn.Module,
        uses: Iterable[UsesOfMatrices],
        share: float,
        reduce: Reduce | None = None,
    ) -> None:
        """See `emmental.modules.brain_surgeon.operate`."""
        from emmental.modules.brain_surgeon import operate

        operate(model, uses, share, reduce)
