"""Prunes a trained model in rungs: information, cut, refit, then the same with the remaining model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from emmental.modules.weight_information import Reduce
from emmental.shrinking import shrink
from emmental.structured.agreement import agreement, answers
from emmental.structured.gates import HEADS, Sublayer, all_open, gated, openings, sublayers
from emmental.structured.information import fisher_information
from emmental.structured.refit import add_biases, refit, refit_last
from emmental.structured.selection import Budget, one_head_a_layer, select
from emmental.structured.texts import Material
from emmental.task_heads import Agreement, Answers, TaskHead, task_head

logger = logging.getLogger(__name__)

RUNGS = 3
CLIFF, CLIFF_BEFORE_RECOVERY = 0.05, 0.2
"""If a larger share of the answers changes, more rungs are tried. A recovery repairs more than further rungs do."""
_TOLERANCE = 1.02
"""A layer may lose its last head if the divergence from the dense model grows at most by this factor."""


@dataclass(frozen=True)
class Pruned:
    """A smaller model, and how well it agrees with the dense one on held-out texts.

    Attributes:
        model: in small form.
        agreement: with the dense model.
        rungs: number of rungs.
    """

    model: PreTrainedModel
    agreement: Agreement
    rungs: int


def prune_in_rungs(
    dense: PreTrainedModel,
    material: Material,
    budget: Budget,
    rungs: int = RUNGS,
    *,
    refitted: bool = True,
    reduce: Reduce | None = None,
) -> Pruned:
    """The small model for a budget, without training; `dense` stays as it is.

    After rung r of k the share s^(r/k) is left, so each rung keeps the same share of the model before it.
    Every layer keeps its best head, unless the answers to held-out texts hardly change without it.

    Args:
        dense: a trained model, plain or small.
        material: batches for information, refit and check; each process has its own if `reduce` is given.
        budget: of weights or of milliseconds.
        refitted: False leaves the remaining weights as they are.
        reduce: sums a float64 tensor over all processes and returns it.
    """
    head = material.head or task_head(dense)
    with bf16_products(dense.device):
        expected = answers(dense, material.check, head)
        model, check = dense, Agreement(0.0, 0.0)
        for rung in range(1, rungs + 1):
            if not sublayers(model):  # the encoder is empty already
                break
            information = fisher_information(model, material.information, reduce, head)
            parts = sublayers(model)
            prices, limit = budget.prices(parts), budget.limit(rung, rungs)
            fewest = one_head_a_layer(parts)
            if rung > 1:
                endangered = select(information, prices, limit)
                fewest = _heads_to_keep(model, parts, fewest, endangered, material, head, expected, check, reduce)
            if refitted:
                model = add_biases(model)
            candidate = partial(_candidate, model, information, prices, fewest)
            if rung == rungs and budget.tune is not None:
                limit = budget.tune(candidate, limit)
            model = candidate(limit)
            if refitted:
                refit_rung(dense, model, material, reduce, last=rung == rungs)
            check = agreement(head, expected, answers(model, material.check, head), reduce)
            logger.info("rung %d of %d: %s", rung, rungs, check)
    return Pruned(model, check, rungs)


def refit_rung(
    dense: PreTrainedModel,
    model: PreTrainedModel,
    material: Material,
    reduce: Reduce | None,
    *,
    last: bool,
    keep_zeros: bool = False,
) -> None:
    """Refit what a rung has left, in place, to the states of `dense`; in the last rung its last linear too."""
    head = material.head or task_head(dense)
    refit(dense, model, material.refit, reduce=reduce, keep_zeros=keep_zeros, head=head)
    if last:
        refit_last(dense, model, material.refit, reduce=reduce, head=head)


def _candidate(
    model: PreTrainedModel,
    information: Sequence[Tensor],
    prices: Sequence[Tensor],
    fewest: Sequence[int],
    limit: float,
) -> PreTrainedModel:
    """The small model with the gates that have the most information within the price `limit`."""
    return shrink(model, openings(model, select(information, prices, limit, fewest)))


def prune_carefully(prune: Callable[..., Pruned], cliff: float = CLIFF) -> Pruned:
    """Prune in three rungs. If a larger share than `cliff` of the answers changes, prune in twice as many too.

    Args:
        prune: `prune_in_rungs` or `prune_weights` with all arguments but `rungs`.

    Returns the model with the smaller divergence from the dense one.
    """
    first = prune(rungs=RUNGS)
    if first.agreement.changed <= cliff:
        return first
    logger.info("more than %.0f %% of the answers change: trying %d rungs", 100 * cliff, 2 * RUNGS)
    second = prune(rungs=2 * RUNGS)
    return min(first, second, key=lambda pruned: pruned.agreement.divergence)


def bf16_products(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast to bfloat16 if the processor has it in hardware; sums and solutions stay in float32 and float64."""
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        # Weights change inside, so cached casts of them would be stale.
        return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


def _heads_to_keep(
    model: PreTrainedModel,
    parts: Sequence[Sublayer],
    fewest: list[int],
    selected: Sequence[Tensor],
    material: Material,
    head: TaskHead,
    expected: Answers,
    present: Agreement,
    reduce: Reduce | None,
) -> list[int]:
    """`fewest`, with 0 for layers that may lose all heads: the selection would cut them, and the answers agree."""
    kept = list(fewest)
    gates = all_open(model)
    for index, (part, mask) in enumerate(zip(parts, selected, strict=True)):
        if part.kind != HEADS or mask.any():
            continue
        gates[index].zero_()
        with gated(model, gates):
            without = agreement(head, expected, answers(model, material.check, head), reduce)
        if without.divergence <= present.divergence * _TOLERANCE and without.changed <= present.changed:
            kept[index] = 0
        else:
            gates[index].fill_(1.0)
    return kept
