"""The optimal brain surgeon: prunes single weights, and changes those that stay to make up for the pruned ones.

Source: Kurtic et al. 2022, arXiv 2203.07259. The Fisher information is a matrix for each block of weights,
so it also knows which weights can replace each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from emmental.methods.brain_surgeon import BLOCK
from emmental.modules.weight_information import Reduce, Uses, UsesOfMatrices, most_of_all

RIDGE = 0.01
"""The ridge, in units of the mean information of the weights of all matrices."""
_EXAMPLES, _BLOCKS = 64, 8192
"""Examples whose gradients of one matrix are held at once; blocks that are inverted or solved at once."""


@torch.no_grad()
def operate(model: nn.Module, uses: Iterable[UsesOfMatrices], share: float, reduce: Reduce | None = None) -> None:
    """Keep the share of weights whose removal costs most, all matrices together, in place; the others become zero.

    Removing a weight w costs w^2 / (2 inverse_ii) if the other weights of its block change in the best way, by
    -inverse_iq (inverse_qq)^-1 w_q for all weights q that are removed at once. Weights that are zero stay zero.
    The inverse magnifies rounding, so two processes may decide near ties otherwise than one.

    Args:
        model: a classifier; its encoder's matrices are changed.
        uses: gradients of single examples, as for `weight_information`.
        share: of all weights, above 0 and up to 1.
        reduce: see `Reduce`.
    """
    inverses = _inverses(uses, reduce)
    weights = {name: model.get_submodule(name).weight for name in inverses}
    scores = {}
    for name, weight in weights.items():
        costs = _blocks(weight.view(1, -1))[0].square() / inverses[name].diagonal(dim1=1, dim2=2)
        scores[name] = costs.flatten()[: weight.numel()].view_as(weight)
    kept = most_of_all(weights, scores, share)
    for name, weight in weights.items():
        with torch.autocast(weight.device.type, enabled=False):
            _remove(weight, kept[name].flatten(), inverses.pop(name))


def _remove(weight: Tensor, kept: Tensor, inverse: Tensor) -> None:
    """Zero the weights that are not `kept`, bool (N,), and change the others of their block to make up for them."""
    blocks, gone = _blocks(weight.view(1, -1))[0], _blocks(~kept[None])[0].bool()
    for some in torch.arange(len(blocks), device=weight.device).split(_BLOCKS):
        out = gone[some].float()
        system = inverse[some] * out[:, :, None] * out[:, None] + torch.diag_embed(1 - out)
        pressure = torch.linalg.solve(system, (blocks[some] * out)[..., None])
        blocks[some] -= (inverse[some] @ pressure)[..., 0]
    weight.copy_(blocks.masked_fill_(gone, 0).flatten()[: weight.numel()].view_as(weight))


def _inverses(uses: Iterable[UsesOfMatrices], reduce: Reduce | None) -> dict[str, Tensor]:
    """Matrix -> inverse of its blocks' information, float32 (blocks, BLOCK, BLOCK)."""
    found: dict[str, Tensor] = {}
    for matrices in uses:
        for (name, _), each in matrices.items():
            with torch.autocast(each[0][0].device.type, enabled=False):
                for gradients in _gradients(each):
                    blocks = _blocks(gradients).permute(1, 2, 0)
                    found[name] = (
                        found[name].baddbmm_(blocks, blocks.mT) if name in found else torch.bmm(blocks, blocks.mT)
                    )
    if reduce is not None:
        found = {name: reduce(each.double()).float() for name, each in found.items()}
    diagonals = [each.diagonal(dim1=1, dim2=2) for each in found.values()]
    ridge = RIDGE * sum(each.sum() for each in diagonals) / sum(each.numel() for each in diagonals)
    for total, diagonal in zip(found.values(), diagonals, strict=True):
        diagonal += ridge.clamp_min(torch.finfo(torch.float32).tiny)
        for some in torch.arange(len(total), device=total.device).split(_BLOCKS):
            total[some] = torch.linalg.inv(total[some])
    return found


def _gradients(uses: Uses) -> Iterator[Tensor]:
    """The gradients (examples, weights) of single examples, a few at a time."""
    for some in torch.arange(len(uses[0][0])).split(_EXAMPLES):
        yield sum(gradient[some].mT @ given[some] for given, gradient in uses).flatten(1)


def _blocks(rows: Tensor) -> Tensor:
    """(n, N) -> float32 (n, blocks, BLOCK), the last block filled up with zeros."""
    count = -(-rows.shape[1] // BLOCK)
    filled = rows.new_zeros(len(rows), count * BLOCK, dtype=torch.float32)
    filled[:, : rows.shape[1]] = rows
    return filled.view(len(rows), count, BLOCK)
