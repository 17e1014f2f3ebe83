"""Measures how far a pruned model's answers are from the dense model's, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from emmental.modules.weight_information import Reduce
from emmental.structured.stepping import evaluating, inputs_on_device


@dataclass(frozen=True)
class Agreement:
    """A model compared with the dense one on the same texts.

    Attributes:
        changed: share of texts that get another class; for regression the mean squared difference, divided by the
            variance of the dense model's answers.
        divergence: KL(dense || pruned), nats, mean over texts; for regression the mean squared difference.
    """

    changed: float
    divergence: float

    def __str__(self) -> str:
        return f"{100 * self.changed:.1f} % of answers change, divergence {self.divergence:.4f}"


def answers(model: nn.Module, batches: Iterable[Mapping[str, Tensor]]) -> Tensor:
    """(N, C) float32 logits of all batches, one after the other; dropout off."""
    with evaluating(model), torch.no_grad():
        return torch.cat([model(**inputs_on_device(batch, model)).logits.float() for batch in batches])


def agreement(dense: Tensor, pruned: Tensor, reduce: Reduce | None = None) -> Agreement:
    """Compare (N, C) logits.

    Args:
        reduce: sums a float64 tensor over all processes and returns it; each process then has its own texts.
    """
    dense, pruned = dense.double(), pruned.double()
    if dense.shape[1] == 1:
        far, divergence = dense.new_zeros(()), (dense - pruned).square().sum()
    else:
        far = (dense.argmax(1) != pruned.argmax(1)).sum().double()
        divergence = functional.kl_div(pruned.log_softmax(1), dense.log_softmax(1), reduction="sum", log_target=True)
    first = dense[:, 0]
    sums = torch.stack((far, divergence, first.sum(), first.square().sum(), first.new_tensor(len(first))))
    far, divergence, total, squares, count = (reduce(sums) if reduce else sums).tolist()
    if dense.shape[1] == 1:
        variance = max(squares / count - (total / count) ** 2, 1e-30)
        return Agreement(divergence / count / variance, divergence / count)
    return Agreement(far / count, divergence / count)
