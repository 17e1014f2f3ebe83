"""A model's answers to batches of texts, and how far a pruned model's are from the dense model's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from emmental.modules.weight_information import Reduce
from emmental.structured.stepping import evaluating, inputs_on_device
from emmental.task_heads import Agreement, Answers, TaskHead, joined, task_head


def answers(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], head: TaskHead | None = None) -> Answers:
    """Answers to all batches, one after the other; dropout off. `head`: by default that of the model."""
    head = head or task_head(model)
    with evaluating(model), torch.no_grad():
        return joined([head.answers(model(**inputs_on_device(batch, model)), batch) for batch in batches])


def agreement(head: TaskHead, dense: Answers, pruned: Answers, reduce: Reduce | None = None) -> Agreement:
    """Compare answers to the same texts.

    Args:
        reduce: sums a float64 tensor over all processes and returns it; each process then has its own texts.
    """
    sums = head.sums(dense, pruned)
    return head.agreement(reduce(sums) if reduce else sums)
