"""Ways to rank single weights. Each ranks the weights of some models of a stack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Method:
    """Decides which weights of K models stay; may observe their training."""

    def __init__(self, weights: Tensor, sizes: Sequence[int]) -> None:
        """Start from the weights (K, N) of the models; `sizes` are the numbers of weights of their matrices."""
        self.sizes = list(sizes)

    def observe(self, weights: Tensor, gradients: Tensor, rate: float) -> None:
        """Take an update's weights, and the gradients of the masked weights, both (K, N); `rate` is 0 to 1."""


class Ranking(Method, ABC):
    """Masks of K models from scores of their weights.

    Attributes:
        over_all: whether all matrices of a model are ranked together, or each keeps the same share.
    """

    over_all = True

    @abstractmethod
    def scores(self, weights: Tensor) -> Tensor:
        """(K, N); the highest are kept."""

    @torch.no_grad()
    def mask(self, weights: Tensor, mask: Tensor, shares: Sequence[float]) -> None:
        """Write ones into `mask` (K, N) for the share of each model that stays, zeros for the rest."""
        scores = self.scores(weights)
        for row, share in enumerate(shares):
            widths = [scores.shape[1]] if self.over_all else self.sizes
            for part, target in zip(scores[row].split(widths), mask[row].split(widths), strict=True):
                kept = torch.topk(part, round(share * part.numel()), sorted=False).indices
                target.zero_()
                target[kept] = 1


class Magnitude(Ranking):
    """|w|, the same share of every matrix."""

    over_all = False

    def scores(self, weights: Tensor) -> Tensor:
        return weights.abs()


class GlobalMagnitude(Magnitude):
    """|w|, all matrices together."""

    over_all = True


class Movement(Ranking):
    """Scores that Adam learns through the mask (Sanh et al. 2020, arXiv 2005.07683); same share of every matrix."""

    over_all = False
    learning_rate = 1e-2

    def __init__(self, weights: Tensor, sizes: Sequence[int]) -> None:
        super().__init__(weights, sizes)
        self._scores = self.start(weights)
        self._first, self._second = torch.zeros_like(weights), torch.zeros_like(weights)
        self._updates = 0

    def start(self, weights: Tensor) -> Tensor:
        return torch.zeros_like(weights)

    def observe(self, weights: Tensor, gradients: Tensor, rate: float) -> None:
        gradient = weights * gradients
        self._updates += 1
        self._first.lerp_(gradient, 0.1)
        self._second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        spread = (self._second / (1 - 0.999**self._updates)).sqrt_().add_(1e-8)
        step = -self.learning_rate * rate / (1 - 0.9**self._updates)
        self._scores.addcdiv_(self._first, spread, value=step)

    def scores(self, weights: Tensor) -> Tensor:
        return self._scores


class SoftMovement(Movement):
    """The same scores with one threshold for all matrices, which leaves the wanted share."""

    over_all = True


class SoftMovementFromMagnitude(SoftMovement):
    """Soft movement whose scores start at |w|, and move more slowly."""

    learning_rate = 2e-3

    def start(self, weights: Tensor) -> Tensor:
        return weights.abs()


class Fisher(Ranking):
    """w^2 F, with F the moving average (0.98) of squared gradients."""

    def __init__(self, weights: Tensor, sizes: Sequence[int]) -> None:
        super().__init__(weights, sizes)
        self._information = torch.zeros_like(weights)

    def observe(self, weights: Tensor, gradients: Tensor, rate: float) -> None:
        self._information.mul_(0.98).addcmul_(gradients, gradients, value=0.02)

    def scores(self, weights: Tensor) -> Tensor:
        return weights.square() * self._information


class Platon(Ranking):
    """Importance times its uncertainty, both moving averages (0.85) of |w g| (Zhang et al. 2022, arXiv 2206.12562)."""

    def __init__(self, weights: Tensor, sizes: Sequence[int]) -> None:
        super().__init__(weights, sizes)
        self._importance, self._uncertainty = torch.zeros_like(weights), torch.zeros_like(weights)

    def observe(self, weights: Tensor, gradients: Tensor, rate: float) -> None:
        importance = (weights * gradients).abs_()
        self._importance.lerp_(importance, 0.15)
        self._uncertainty.lerp_(importance.sub_(self._importance).abs_(), 0.15)

    def scores(self, weights: Tensor) -> Tensor:
        return self._importance * self._uncertainty


class BrainSurgeon(Method):
    """Uses blocks of the inverse empirical Fisher matrix; pruning a weight also changes the weights that stay.


    Source: Kurtic et al. 2022, arXiv 2203.07259. Prunes only `steps` times, because each time needs gradients of a
    thousand rows.
    """

    block, ridge, steps = 50, 1e-7, 5

    def prune(self, weights: Tensor, mask: Tensor, share: float, gradients: Iterable[Tensor]) -> None:
        """Prune one model to a share, in place.

        Args:
            weights: float32 (N,); changed.
            mask: float32 (N,); changed. What is pruned stays pruned.
            share: of the weights that stay.
            gradients: of the masked weights for single rows, in parts of (R, N).
        """
        inverse = self._inverse(gradients)
        blocks = _blocks(weights * mask, self.block)
        open_ = _blocks(mask, self.block).bool()
        scores = (blocks.square() / inverse.diagonal(dim1=1, dim2=2)).masked_fill_(~open_, -1).flatten()
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[torch.topk(scores, round(share * weights.numel()), sorted=False).indices] = True
        gone = ~kept.view_as(blocks)
        for some in torch.arange(len(blocks), device=weights.device).split(16384):
            out = gone[some].float()
            system = inverse[some] * out[:, :, None] * out[:, None] + torch.diag_embed(1 - out)
            moved = torch.linalg.solve(system, (blocks[some] * out)[..., None])
            blocks[some] -= (inverse[some] @ moved)[..., 0]
        blocks.masked_fill_(gone, 0)
        weights.copy_(blocks.flatten()[: weights.numel()])
        mask.copy_(kept[: weights.numel()])

    def _inverse(self, gradients: Iterable[Tensor]) -> Tensor:
        total, rows = torch.empty(0), 0
        for each in gradients:
            blocks = torch.stack([_blocks(row, self.block) for row in each], dim=2)  # (blocks, 50, R)
            total = total.baddbmm_(blocks, blocks.mT) if rows else blocks @ blocks.mT
            rows += len(each)
        total /= rows
        total.diagonal(dim1=1, dim2=2).add_(self.ridge)
        for some in torch.arange(len(total), device=total.device).split(16384):
            total[some] = torch.linalg.inv(total[some])
        return total


def _blocks(flat: Tensor, size: int) -> Tensor:
    """A vector in rows of `size`, the last one padded with zeros."""
    return torch.nn.functional.pad(flat, (0, -flat.numel() % size)).view(-1, size)


METHODS: dict[str, type[Method]] = {
    "magnitude": Magnitude,
    "magnitude, all matrices": GlobalMagnitude,
    "movement": Movement,
    "soft movement": SoftMovement,
    "soft movement from magnitude": SoftMovementFromMagnitude,
    "fisher": Fisher,
    "platon": Platon,
    "brain surgeon": BrainSurgeon,
    "fisher, refit": Fisher,
}
