"""L0 regularization with hard concrete gates (Louizos, Welling and Kingma 2018, arXiv 1712.01312)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emmental.methods.method import Method, PruningRecipe, ThresholdMeaning

if TYPE_CHECKING:
    from torch import Tensor


class L0(Method):
    """Learned scores say how far a gate is open. There is no threshold."""

    name = "l0"
    threshold = ThresholdMeaning.NONE
    pruning = PruningRecipe(mask_scale=5.0, mask_scores_learning_rate=1e-2)  # large enough for the noise of the gates

    def make_mask(
        self,
        source: Tensor,
        threshold: float | None,
        global_threshold: tuple[float, int] | None = None,
        training: bool = False,
        noise_seed: int | None = None,
    ) -> Tensor:
        """See `Method`. In training the gates have noise; the global_threshold says where they open."""
        import torch

        from emmental.modules.binarizer import hard_concrete_mask

        noisy = training and noise_seed is not None
        generator = torch.Generator(source.device).manual_seed(noise_seed) if noisy else None
        return hard_concrete_mask(source, training, generator, global_threshold)
