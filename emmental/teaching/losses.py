"""Losses of distillation: between logits, and between hidden states. All are computed in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from emmental.data.joined import UNLABELLED
from emmental.runs.processes import Processes
from emmental.task_heads import bernoulli_divergence
from emmental.tasks.kinds import CLASSES, SCORES, SEVERAL, kind_of_model

IGNORED = -100
"""Label of a position that has no loss."""


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(softmax(t / T) || softmax(s / T)) * T^2 over the last dimension of logits (..., C); returns (...).

    Hinton, Vinyals and Dean 2015 (arXiv 1503.02531).
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of the angle between hidden states (..., H); returns (...)."""
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)


class ClassLoss:
    """Losses of one class a row."""

    def of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of each row, (B,), of logits (B, C) and class ids (B,); 0 without a label."""
        return F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=UNLABELLED)

    def of_teacher(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """`distillation_loss`."""
        return distillation_loss(logits, teacher, temperature)


@dataclass(frozen=True)
class ScoreLoss:
    """Losses of a score a row.

    Attributes:
        deviation: the unit of the error: the standard deviation of the labels.
    """

    deviation: float = 1.0

    def of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Squared error of each row, (B,), of logits (B, 1) and scores (B,); 0 without a label."""
        scores = logits.float().squeeze(-1)
        known = torch.where(labels.isnan(), scores.detach(), labels.float())
        return ((scores - known) / self.deviation).square()

    def of_teacher(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Squared error; there is no temperature."""
        return ((logits.float() - teacher.float()) / self.deviation).square().squeeze(-1)


class SeveralLabelsLoss:
    """Losses of several labels a row. They are sums over labels: nats for all that is said of a row."""

    def of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Binary cross entropy of each row, (B,), of logits and labels 0 and 1 (B, L); 0 for labels that are NaN."""
        known = torch.where(labels.isnan(), 0.0, labels.float())
        values = F.binary_cross_entropy_with_logits(logits.float(), known, reduction="none")
        return torch.where(labels.isnan(), 0.0, values).sum(-1)

    def of_teacher(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Sum of the KL of sigmoid(t / T) from sigmoid(s / T), times T^2."""
        return bernoulli_divergence(teacher.float() / temperature, logits.float() / temperature) * temperature**2


Loss = ClassLoss | ScoreLoss | SeveralLabelsLoss
"""Losses of each row: `of_labels` compares logits with labels, `of_teacher` with a teacher's logits."""


def loss_of(config: PreTrainedConfig, deviation: float = 1.0) -> Loss:
    """The losses of a model with this configuration; `deviation` is that of its labels if they are scores."""
    kind = kind_of_model(config)
    return {CLASSES: ClassLoss(), SCORES: ScoreLoss(deviation), SEVERAL: SeveralLabelsLoss()}[kind]


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
