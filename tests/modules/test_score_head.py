"""A regression is trained in standard scores; what it answers and saves is in the unit of its labels."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import tiny_models
import torch
from torch.nn.functional import mse_loss
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from emmental.modules.output_linear import output_linear
from emmental.modules.score_head import (
    ScoreHead,
    deviation_of,
    mean_and_deviation,
    restore_scores,
    standard_parameters,
    standardise_scores,
)
from emmental.runs.checkpoints import load_checkpoint, load_weights, save_checkpoint
from emmental.runs.optimization import adamw, parameter_groups
from emmental.runs.processes import Processes
from emmental.teaching.losses import task_loss, teacher_loss

IDS = torch.tensor([[2, 7, 9, 3], [2, 30, 12, 3], [2, 8, 40, 3]])
PRICES = np.array([100.0, 300.0, 500.0], np.float32)


@pytest.fixture
def model(tmp_path):
    return BertForSequenceClassification.from_pretrained(tiny.save_bert(tmp_path / "bert", 1)).eval()


def answers(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits[:, 0]


def trained(model, labels: np.ndarray, updates: int = 10):
    """The model after some updates of AdamW; its head learns standard scores."""
    standardise_scores(model, labels)
    optimizer = adamw(parameter_groups(model, 1e-2, 0.1), 1e-8)
    for _ in range(updates):
        task_loss(model(input_ids=IDS).logits, torch.tensor(labels), deviation_of(model)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_a_new_head_begins_at_the_mean_with_the_deviation_of_the_labels(model):
    before = answers(model)
    standardise_scores(model, PRICES)
    assert mean_and_deviation(PRICES) == (300.0, pytest.approx(np.sqrt(80000 / 3)))
    assert torch.allclose(answers(model), before * np.sqrt(80000 / 3) + 300, rtol=1e-6)


def test_a_trained_head_keeps_its_answers(model):
    with torch.no_grad():
        model.classifier.bias.fill_(250.0)
    before = answers(model)
    standardise_scores(model, PRICES)
    assert torch.allclose(answers(model), before, rtol=1e-5)
    restore_scores(model)
    assert type(model.classifier) is torch.nn.Linear
    assert torch.allclose(answers(model), before, rtol=1e-5)


@pytest.mark.parametrize("unit", [1e-6, 0.01, 100.0, 1e6])
def test_the_unit_does_not_matter(model, unit):
    other = copy.deepcopy(model)
    for each, labels in ((model, PRICES), (other, (PRICES * unit).astype(np.float32))):
        trained(each, labels)
        restore_scores(each)
    assert torch.allclose(answers(other) / unit, answers(model), rtol=1e-3)
    assert mse_loss(answers(model), torch.tensor(PRICES)).sqrt() < 120  # always the mean: 163


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_what_is_saved_answers_in_the_unit_of_the_labels(model_type, tmp_path):
    model = tiny_models.model(model_type, num_labels=1).eval()
    with torch.no_grad():
        output_linear(model).bias.fill_(0.5)
    standardise_scores(model, PRICES)
    assert isinstance(output_linear(model), ScoreHead)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.allclose(answers(again), answers(model), rtol=1e-4, atol=1e-3)
    restore_scores(model)
    assert torch.allclose(answers(again), answers(model), rtol=1e-4, atol=1e-3)


def test_a_resumed_training_goes_on_with_the_same_bits(model, tmp_path):
    other = copy.deepcopy(model)
    optimizer = trained(model, PRICES, 3)
    saved = save_checkpoint(tmp_path, 3, model, None, optimizer, {}, Processes())
    standardise_scores(other, PRICES)
    second = adamw(parameter_groups(other, 1e-2, 0.1), 1e-8)
    load_checkpoint(saved, other, second, Processes())
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    load_weights(saved, other)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_a_checkpoint_without_standard_scores_is_read_in_the_unit_of_the_labels(model, tmp_path):
    optimizer = trained(model, PRICES, 3)
    saved = save_checkpoint(tmp_path, 3, model, None, optimizer, {}, Processes())
    (saved / "standard_scores.safetensors").unlink()
    expected, other = answers(model), copy.deepcopy(model)
    with torch.no_grad():
        other.classifier.weight.zero_()
    load_weights(saved, other)
    assert torch.allclose(answers(other), expected, rtol=1e-4)


def test_classes_and_unknown_labels(model, tmp_path):
    two = BertForSequenceClassification.from_pretrained(tiny.save_bert(tmp_path / "two"))
    standardise_scores(two, np.array([0, 1]))
    standardise_scores(model, None)
    for each in (two, model):
        assert type(each.classifier) is torch.nn.Linear
        assert (deviation_of(each), standard_parameters(each)) == (1.0, {})


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([np.nan, 2.0, 4.0], (3.0, 1.0)), ([7.0, 7.0], (7.0, 1.0)), ([np.nan], (0.0, 1.0)), ([], (0.0, 1.0))],
)
def test_mean_and_deviation_of_known_labels(labels, expected):
    assert mean_and_deviation(np.array(labels, np.float32)) == expected


def test_losses_are_in_units_of_the_deviation():
    logits, labels = torch.tensor([[130.0], [100.0]]), torch.tensor([100.0, torch.nan])
    assert task_loss(logits, labels, 10.0).tolist() == [9.0, 0.0]
    assert teacher_loss(logits, torch.tensor([[110.0], [110.0]]), 2.0, 10.0).tolist() == [4.0, 1.0]
