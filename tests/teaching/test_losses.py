"""The losses of distillation, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import BertConfig

from emmental.runs.processes import Processes
from emmental.teaching.losses import (
    ClassLoss,
    LmOutputs,
    ScoreLoss,
    SeveralLabelsLoss,
    averaged,
    cosine_distance,
    distillation_loss,
    lm_loss_sums,
    loss_of,
    weighted_mean,
)

LOG3 = math.log(3)


def test_distillation_loss_by_hand() -> None:
    # At temperature 2 the teacher's (2 log 3, 0) is (3/4, 1/4); the student's (0, 0) is (1/2, 1/2).
    teacher, student = torch.tensor([[2 * LOG3, 0.0]]), torch.zeros(1, 2)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert distillation_loss(student, teacher, 2.0).tolist() == pytest.approx([4 * kl])
    assert distillation_loss(teacher, teacher, 2.0).tolist() == pytest.approx([0.0], abs=1e-7)


def test_cosine_distance_by_hand() -> None:
    one, other = (
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]),
        torch.tensor([[0.0, 3.0], [-1.0, 0.0], [5.0, 0.0]]),
    )
    assert cosine_distance(one, other).tolist() == pytest.approx([1.0, 2.0, 0.0], abs=1e-7)


def test_task_losses_by_hand() -> None:
    of_class = ClassLoss().of_labels(torch.tensor([[LOG3, 0.0]]), torch.tensor([1]))
    assert of_class.tolist() == pytest.approx([math.log(4)])
    assert ScoreLoss().of_labels(torch.tensor([[2.5]]), torch.tensor([1.0])).tolist() == pytest.approx([2.25])
    assert ScoreLoss().of_teacher(torch.tensor([[2.5]]), torch.tensor([[1.0]]), 7.0).tolist() == pytest.approx([2.25])
    assert float(weighted_mean(torch.tensor([2.0, 4.0]), torch.tensor([2.0, 0.0]))) == 2.0


def test_losses_of_several_labels_by_hand() -> None:
    """Probabilities 3/4 and 1/2. A row of NaN has no label, so it has no loss and no gradient."""
    logits = torch.tensor([[LOG3, 0.0], [LOG3, 0.0]], requires_grad=True)
    losses = SeveralLabelsLoss().of_labels(logits, torch.tensor([[1.0, 0.0], [math.nan, math.nan]]))
    assert losses.tolist() == pytest.approx([math.log(4 / 3) + math.log(2), 0.0])
    losses.sum().backward()
    assert logits.grad.tolist() == [pytest.approx([-1 / 4, 1 / 2]), [0.0, 0.0]]
    # At temperature 2 the teacher's 2 log 3 is 3/4, the student's 0 is 1/2; the second label agrees.
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    taught = SeveralLabelsLoss().of_teacher(torch.tensor([[0.0, 1.0]]), torch.tensor([[2 * LOG3, 1.0]]), 2.0)
    assert taught.tolist() == pytest.approx([4 * kl], abs=1e-6)


def test_the_configuration_says_which_loss() -> None:
    assert isinstance(loss_of(BertConfig(num_labels=3)), ClassLoss)
    assert loss_of(BertConfig(num_labels=1), 2.0) == ScoreLoss(2.0)
    several = BertConfig(num_labels=3, problem_type="multi_label_classification")
    assert isinstance(loss_of(several), SeveralLabelsLoss)


def outputs() -> tuple[LmOutputs, LmOutputs]:
    student = LmOutputs(torch.zeros(1, 3, 2), torch.tensor([[[1.0, 0.0]] * 3]))
    logits = torch.tensor([[[LOG3, 0.0], [0.0, 0.0], [9.0, 9.0]]])
    return student, LmOutputs(logits, torch.tensor([[[0.0, 1.0], [1.0, 0.0], [7.0, 7.0]]]))


def test_lm_losses_by_hand() -> None:
    student, teacher = outputs()
    attended, labels = torch.tensor([[True, True, False]]), torch.tensor([[0, 1, -100]])
    sums = lm_loss_sums(["ce", "mlm", "clm", "mse", "cos"], student, teacher, labels, attended)
    losses, scales = averaged(sums, Processes())
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(losses["ce"]) == pytest.approx(kl / 2, rel=1e-6)
    assert float(losses["mlm"]) == pytest.approx(math.log(2))
    assert float(losses["clm"]) == pytest.approx(math.log(2))
    assert float(losses["mse"]) == pytest.approx(LOG3**2 / 2)
    assert float(losses["cos"]) == pytest.approx(0.5)
    assert {name: float(part.count) for name, part in sums.items()} == {
        "ce": 2,
        "mlm": 2,
        "clm": 1,
        "mse": 2,
        "cos": 2,
    }
    assert float(scales["ce"]) == 0.5


def test_only_the_masked_positions_when_asked() -> None:
    student, teacher = outputs()
    attended, labels = torch.tensor([[True, True, False]]), torch.tensor([[-100, 1, -100]])
    sums = lm_loss_sums(["ce", "mse", "cos"], student, teacher, labels, attended, restrict_ce_to_mask=True)
    losses, _ = averaged(sums, Processes())
    assert float(losses["ce"]) == pytest.approx(0.0, abs=1e-7)
    assert float(losses["mse"]) == 0.0
    assert float(losses["cos"]) == pytest.approx(0.5)


def test_no_position_is_no_loss() -> None:
    student, teacher = outputs()
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    sums = lm_loss_sums(["ce", "mlm", "mse"], student, teacher, torch.full((1, 3), -100), nothing)
    losses, _ = averaged(sums, Processes())
    assert [float(value) for value in losses.values()] == [0.0, 0.0, 0.0]
