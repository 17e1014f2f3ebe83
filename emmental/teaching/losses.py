"""Losses of distillation: between logits, and between hidden states. All are computed in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from emmental.data.joined import UNLABELLED
from emmental.runs.processes import Processes

IGNORED = -100
"""Label of a position that has no loss."""


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(softmax(t / T) || softmax(s / T)) * T^2 over the last dimension of logits (..., C); returns (...).

    Hinton, Vinyals and Dean 2015 (arXiv 1503.02531).
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def teacher_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float, deviation: float = 1.0) -> Tensor:
    """Loss of each example, (B,), for logits (B, C): `distillation_loss`, or squared error for one output.

    `deviation` is the unit of that error: the standard deviation of the labels.
    """
    if student_logits.shape[-1] == 1:
        return ((student_logits.float() - teacher_logits.float()) / deviation).square().squeeze(-1)
    return distillation_loss(student_logits, teacher_logits, temperature)


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of the angle between hidden states (..., H); returns (...)."""
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)


def task_loss(logits: Tensor, labels: Tensor, deviation: float = 1.0) -> Tensor:
    """Loss of each example, (B,): cross entropy of logits (B, C), or squared error of one output (B, 1).

    `deviation` is the unit of that error: the standard deviation of the labels. A row without a
    label (see `emmental.data.joined`) has loss and gradient 0.
    """
    if logits.shape[-1] == 1:
        scores = logits.float().squeeze(-1)
        known = torch.where(labels.isnan(), scores.detach(), labels.float())
        return ((scores - known) / deviation).square()
    return F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=UNLABELLED)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values (B,) under the weights (B,) of a `RowBatch`."""
    return (values * weights).mean()


@dataclass(frozen=True)
class LmOutputs:
    """Output of a language model for a batch.

    Attributes:
        logits: (B, T, V).
        hidden: (B, T, H), the last hidden states; None when no loss needs them.
    """

    logits: Tensor
    hidden: Tensor | None = None


@dataclass(frozen=True)
class LmLossSum:
    """A loss before averaging. Ranks add up both numbers, so many ranks get the same mean as one.

    Attributes:
        total: sum over positions, a scalar.
        count: number of those positions, a scalar float64.
    """

    total: Tensor
    count: Tensor


def averaged(sums: dict[str, LmLossSum], processes: Processes) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The mean of each loss over the positions of all ranks, and the factor of a rank's own sum in training.

    Ranks average their gradients, so the factor includes the number of ranks.
    """
    local = [part.total.detach().double() for part in sums.values()] + [part.count for part in sums.values()]
    totals, counts = processes.sum(torch.stack(local)).chunk(2)
    counts = counts.clamp(min=1)
    scales = (processes.world_size / counts).float()
    return dict(zip(sums, totals / counts, strict=True)), dict(zip(sums, scales, strict=True))


def lm_loss_sums(
    names: list[str],
    student: LmOutputs,
    teacher: LmOutputs | None,
    labels: Tensor,
    attended: Tensor,
    restrict_ce_to_mask: bool = False,
    temperature: float = 1.0,
) -> dict[str, LmLossSum]:
    """The losses of language-model distillation (Sanh, Debut, Chaumond and Wolf 2019, arXiv 1910.01108).

    ce: `distillation_loss` at the selected positions. mlm: cross entropy at the labelled positions. clm: the same with
    labels shifted by one position. mse: squared differences of the logits, summed over the vocabulary, at the selected
    positions. cos: `cosine_distance` of the last hidden states at the attended positions.

    Args:
        names: which of them to compute.
        student: its outputs.
        teacher: its outputs; None when only mlm and clm are asked for.
        labels: (B, T) int64, `IGNORED` where there is none.
        attended: (B, T) bool.
        restrict_ce_to_mask: select the labelled positions; otherwise the attended ones.
        temperature: of ce.
    """
    labelled = labels != IGNORED
    selected = labelled if restrict_ce_to_mask else attended
    compute = {
        "ce": lambda: _at(selected, distillation_loss(student.logits, teacher.logits, temperature)),
        "mlm": lambda: _cross_entropy(student.logits, labels),
        "clm": lambda: _cross_entropy(student.logits[:, :-1], labels[:, 1:]),
        "mse": lambda: _at(selected, (student.logits.float() - teacher.logits.float()).square().sum(-1)),
        "cos": lambda: _at(attended, cosine_distance(student.hidden, teacher.hidden)),
    }
    return {name: compute[name]() for name in names}


def _at(positions: Tensor, values: Tensor) -> LmLossSum:
    """Sum of values (B, T) at the positions that are True."""
    return LmLossSum(torch.where(positions, values, 0.0).sum(), positions.sum(dtype=torch.float64))


def _cross_entropy(logits: Tensor, labels: Tensor) -> LmLossSum:
    total = F.cross_entropy(
        logits.float().reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
    )
    return LmLossSum(total, (labels != IGNORED).sum(dtype=torch.float64))
