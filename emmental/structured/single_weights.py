"""Prunes single weights of a fine-tuned classifier in rungs, without training: information, cut, refit, and again."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from emmental.architectures import encoder_linears
from emmental.structured.agreement import agreement, answers
from emmental.structured.brain_surgeon import operate
from emmental.structured.information import Reduce
from emmental.structured.rungs import RUNGS, Pruned, bf16_products, refit_rung
from emmental.structured.selection import most_of_all
from emmental.structured.single_gradients import Uses, uses_of_matrices
from emmental.structured.texts import Material
from emmental.task_heads import Agreement, task_head

logger = logging.getLogger(__name__)


def prune_weights(
    dense: PreTrainedModel,
    material: Material,
    keep: float,
    rungs: int = RUNGS,
    *,
    surgeon: bool = False,
    reduce: Reduce | None = None,
) -> Pruned:
    """The model that keeps the share `keep` of the weights in its encoder's matrices; the others are exactly zero.

    After rung r of k the share keep^(r/k) is left: the weights with the highest w^2 F of all matrices together, F the
    Fisher information of single examples. Then the attention outputs and down projections are refitted, so that the
    hidden states come closest to the dense model's. `dense` stays as it is.

    Args:
        dense: a fine-tuned classifier, plain or small; its zeros do not count as kept weights.
        material: batches for information, refit and check; each process has its own if `reduce` is given.
        keep: share of all weights, above 0 and up to 1.
        rungs: number of rungs.
        reduce: sums a float64 tensor over all processes and returns it.
    """
    head = material.head or task_head(dense)
    with bf16_products(dense.device):
        expected = answers(dense, material.check, head)
        model, check = copy.deepcopy(dense), Agreement(0.0, 0.0)
        for rung in range(1, rungs + 1):
            share = keep ** (rung / rungs)
            if surgeon:
                operate(model, material.information, share, reduce)
            else:
                _keep_most(model, weight_information(model, material.information, reduce), share)
            refit_rung(dense, model, material, reduce, last=rung == rungs, keep_zeros=True)
            check = agreement(head, expected, answers(model, material.check, head), reduce)
            logger.info("rung %d of %d: %s", rung, rungs, check)
    return Pruned(model, check, rungs)


def weight_information(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], reduce: Reduce | None = None
) -> dict[str, Tensor]:
    """Sum over examples of the squared gradient of that example, for every matrix of the encoder.

    The gradients are of the same scalars as in `fisher_information`. Dropout is off.

    Returns:
        Dotted name -> float32 (outputs, inputs).
    """
    weights = {name: model.get_submodule(name).weight for name in encoder_linears(model)}
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    for uses in uses_of_matrices(model, batches):
        for (name, _), each in uses.items():
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
def _keep_most(model: nn.Module, information: Mapping[str, Tensor], share: float) -> None:
    """Zero all but the share of weights with the highest w^2 F, all matrices ranked together."""
    weights = {name: model.get_submodule(name).weight for name in information}
    scores = {name: weights[name].float().square() * each for name, each in information.items()}
    for name, mask in most_of_all(weights, scores, share).items():
        weights[name].masked_fill_(~mask, 0.0)
