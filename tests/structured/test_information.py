"""Fisher information against gradients that are taken one example and one class at a time."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from tiny_batches import batches
from torch.nn import functional

from emmental.structured.gates import all_open, gated
from emmental.structured.information import fisher_information
from emmental.task_heads import fisher_factors


def one_by_one(model, rows, value):
    """Sum over examples of the squared gradients of `value(logits (C,), batch)`, each weighted: [(weight, scalar)]."""
    total = [torch.zeros(gate.shape, dtype=torch.float64) for gate in all_open(model)]
    for batch in rows:
        for row in range(len(batch["input_ids"])):
            example = {name: each[row : row + 1] for name, each in batch.items()}
            gates = [gate.requires_grad_() for gate in all_open(model)]
            with gated(model, gates):
                inputs = {name: each for name, each in example.items() if name != "labels"}
                logits = model(**inputs).logits[0]
            for weight, scalar in value(logits, example):
                for each, gradient in zip(total, torch.autograd.grad(scalar, gates, retain_graph=True), strict=True):
                    each += weight * gradient.double().square()
    return total


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-9)


def test_labels(model, model_type):
    rows = batches(model_type, labels=True)
    loss = lambda logits, example: [(1.0, functional.cross_entropy(logits[None], example["labels"]))]  # noqa: E731
    assert_close(fisher_information(model, rows), one_by_one(model, rows, loss))


@pytest.mark.parametrize("num_labels", [2, 3, 5])
def test_own_distribution(num_labels):
    """Each class: its probability times the squared gradient of its log probability."""
    model, rows = tiny_models.model("bert", num_labels), batches("bert")
    own = lambda logits, _: [(logits.softmax(0)[c].item(), logits.log_softmax(0)[c]) for c in range(num_labels)]  # noqa: E731
    assert_close(fisher_information(model, rows), one_by_one(model, rows, own))


def test_regression():
    model, rows = tiny_models.model("bert", num_labels=1), batches("bert")
    assert_close(fisher_information(model, rows), one_by_one(model, rows, lambda logits, _: [(1.0, logits[0])]))


def test_many_classes_take_few_passes():
    logits = torch.randn(2, 20, generator=torch.Generator().manual_seed(0)) * 3
    factors, shares = fisher_factors(logits).double(), logits.double().softmax(1)
    assert factors.shape == (2, 20, 8)
    whole = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None]
    missing = whole - factors @ factors.transpose(1, 2)
    assert (missing.diagonal(dim1=1, dim2=2).sum(1) < 0.1 * whole.diagonal(dim1=1, dim2=2).sum(1)).all()


def test_two_halves_are_the_whole():
    model, rows = tiny_models.model("bert"), batches("bert")
    whole = fisher_information(model, rows)
    rest = torch.cat(fisher_information(model, rows[1:]))
    assert_close(fisher_information(model, rows[:1], reduce=lambda own: own + rest), whole)


def test_dropout_is_off_and_the_model_is_left_alone():
    model, rows = tiny_models.model("bert", hidden_dropout_prob=0.5), batches("bert")
    expected = fisher_information(model, rows)
    model.train()
    found = fisher_information(model, rows)
    assert all(map(torch.equal, found, expected))
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
