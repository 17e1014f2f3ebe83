"""Fisher information of single weights, from the gradients of single examples, and the cut by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from emmental.architectures import encoder_linears
from emmental.modules.binarizer import count_kept, top_mask

Reduce = Callable[[Tensor], Tensor]
"""Sums a float64 tensor over all processes and returns it; each process then has its own batches."""
Uses = list[tuple[Tensor, Tensor]]
"""The (input (B, tokens, in), gradient of the output (B, tokens, out)) of each use of a matrix, float32."""
UsesOfMatrices = dict[tuple[str, int], Uses]
"""(dotted name, B) -> the uses of that matrix with B examples; their gradients are the sums of gradient^T input."""


def weight_information(
    model: nn.Module, uses: Iterable[UsesOfMatrices], reduce: Reduce | None = None
) -> dict[str, Tensor]:
    """Sum over examples of the squared gradient of that example, for every matrix of the encoder.

    Args:
        model: whose encoder has these matrices.
        uses: see `emmental.structured.single_gradients.uses_of_matrices`.
        reduce: see `Reduce`.

    Returns:
        Dotted name -> float32 (outputs, inputs).
    """
    weights = {name: model.get_submodule(name).weight for name in encoder_linears(model)}
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    for matrices in uses:
        for (name, _), each in matrices.items():
            _add_squares(total[name], each)
    if reduce is not None:
        total = {name: reduce(each.double()).float() for name, each in total.items()}
    return total


def _add_squares(total: Tensor, uses: Uses) -> None:
    """Add the squared gradient of each example to `total`, (outputs, inputs), one by one, which fits in the cache."""
    product = torch.empty_like(total)
    for example in range(len(uses[0][0])):
        for number, (given, gradient) in enumerate(uses):
            torch.addmm(product, gradient[example].mT, given[example], beta=float(number > 0), out=product)
        total.addcmul_(product, product)


@torch.no_grad()
def keep_most(model: nn.Module, information: Mapping[str, Tensor], share: float) -> None:
    """Zero all but the share of weights with the highest w^2 F, all matrices ranked together."""
    weights = {name: model.get_submodule(name).weight for name in information}
    scores = {name: weights[name].float().square() * each for name, each in information.items()}
    for name, mask in most_of_all(weights, scores, share).items():
        weights[name].masked_fill_(~mask, 0.0)


def most_of_all(weights: Mapping[str, Tensor], scores: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Matrix -> bool mask of the share of all weights with the highest scores, all matrices ranked together.

    Weights that are zero already come last, even behind those with scores of zero, so that the share is exact.
    """
    flat = torch.cat([scores[name].masked_fill(weight == 0, -1.0).flatten() for name, weight in weights.items()])
    kept = top_mask(flat, max(1, count_kept(share, flat.numel())))
    parts = kept.split([weight.numel() for weight in weights.values()])
    return {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}
