"""Prunes single weights of a fine-tuned classifier in rungs, without training: information, cut, refit, and again."""

from __future__ import annotations

import copy
import logging

from transformers import PreTrainedModel

from emmental.methods import RECOMMENDED, Method
from emmental.modules.weight_information import Reduce
from emmental.structured.agreement import agreement, answers
from emmental.structured.rungs import RUNGS, Pruned, bf16_products, refit_rung
from emmental.structured.single_gradients import uses_of_matrices
from emmental.structured.texts import Material
from emmental.task_heads import Agreement, task_head

logger = logging.getLogger(__name__)


def prune_weights(
    dense: PreTrainedModel,
    material: Material,
    keep: float,
    rungs: int = RUNGS,
    *,
    method: Method = RECOMMENDED,
    reduce: Reduce | None = None,
) -> Pruned:
    """The model that keeps the share `keep` of the weights in its encoder's matrices; the others are exactly zero.

    After rung r of k the share keep^(r/k) is left, cut by the method from gradients of single examples. Then the
    attention outputs and down projections are refitted, so that the hidden states come closest to the dense model's.
    `dense` stays as it is.

    Args:
        dense: a fine-tuned classifier, plain or small; its zeros do not count as kept weights.
        material: batches for information, refit and check; each process has its own if `reduce` is given.
        keep: share of all weights, above 0 and up to 1.
        rungs: number of rungs.
        method: one that `cuts_first`.
        reduce: sums a float64 tensor over all processes and returns it.
    """
    head = material.head or task_head(dense)
    with bf16_products(dense.device):
        expected = answers(dense, material.check, head)
        model, check = copy.deepcopy(dense), Agreement(0.0, 0.0)
        for rung in range(1, rungs + 1):
            share = keep ** (rung / rungs)
            method.cut(model, uses_of_matrices(model, material.information), share, reduce)
            refit_rung(dense, model, material, reduce, last=rung == rungs, keep_zeros=True)
            check = agreement(head, expected, answers(model, material.check, head), reduce)
            logger.info("rung %d of %d: %s", rung, rungs, check)
    return Pruned(model, check, rungs)
