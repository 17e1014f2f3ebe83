"""The refit: nothing to mend changes nothing, copies replace what was cut, sums over halves are the whole."""

from __future__ import annotations

import copy

import pytest
import tiny_models
import torch
from tiny_batches import batches

from emmental.architectures import DOWN, OUTPUT, QKV, UP, architecture_of, encoder_layers
from emmental.shrinking import shrink
from emmental.structured import refit as refitting
from emmental.structured.agreement import agreement, answers
from emmental.structured.gates import HEADS, openings, sublayers
from emmental.structured.refit import NormalEquations, add_biases, refit, refit_last
from emmental.task_heads import task_head


def test_normal_equations_by_hand():
    """T = 2 c + 1 exactly; c^T c is 2, so a ridge of 1 halves the slope: 2 * 2 / (2 + 2)."""
    given, wanted = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([[-1.0], [1.0], [3.0]])
    equations = NormalEquations(1, 1)
    equations.add(given, wanted)
    weight, bias = equations.solve(0.0)
    assert (weight.item(), bias.item()) == pytest.approx((2.0, 1.0))
    weight, bias = equations.solve(1.0)
    assert (weight.item(), bias.item()) == pytest.approx((1.0, 1.0))


def test_weights_of_rows():
    """A row of weight 2 counts as two rows."""
    generator = torch.Generator().manual_seed(0)
    given, wanted = torch.randn(6, 3, generator=generator), torch.randn(6, 2, generator=generator)
    twice, weighted = NormalEquations(3, 2), NormalEquations(3, 2)
    twice.add(torch.cat((given, given[:1])), torch.cat((wanted, wanted[:1])))
    weighted.add(given, wanted, torch.tensor([2.0, 1, 1, 1, 1, 1]))
    for one, other in zip(twice.solve(0.1), weighted.solve(0.1), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_nothing_cut_nothing_changes(model, model_type):
    rows = batches(model_type)
    biased = add_biases(model)
    copy = shrink(biased, openings(biased, [torch.ones(part.count, dtype=torch.bool) for part in sublayers(biased)]))
    refit(model, copy, rows)
    torch.testing.assert_close(answers(copy, rows).values, answers(model, rows).values, rtol=0, atol=2e-4)


def twin(model):
    """Make the second half of heads and neurons of every layer a copy of the first half."""
    architecture = architecture_of(model.config)
    for layer in encoder_layers(model):
        for role, name in layer.linears.items():
            if role in (OUTPUT, DOWN):
                continue
            blocks = 3 if role == QKV else 2 if role == UP and architecture.gated else 1
            linear = model.get_submodule(name)
            for tensor in (linear.weight, linear.bias):
                if tensor is not None:
                    view = tensor.data.view(blocks, 2, -1, *tensor.shape[1:])
                    view[:, 1] = view[:, 0]
    if architecture.model_type == "mpnet":
        table = model.base_model.encoder.relative_attention_bias.weight.data
        table[:, 1] = table[:, 0]
    return model


def test_copies_stand_in_for_what_is_cut(model, model_type, monkeypatch):
    """With every head and neuron there twice, half of them can go and the logits stay."""
    twin(model)
    rows = batches(model_type, count=24)
    biased = add_biases(model)
    small = shrink(
        biased, openings(biased, [torch.arange(part.count) < part.count // 2 for part in sublayers(biased)])
    )
    before = agreement(task_head(model), answers(model, rows), answers(small, rows)).divergence
    monkeypatch.setattr(refitting, "RIDGE", 1e-9)
    refit(model, small, rows)
    after = agreement(task_head(model), answers(model, rows), answers(small, rows)).divergence
    assert after < 1e-4 * before, (before, after)


def test_refit_mends(model, model_type):
    rows = batches(model_type, count=32)
    gates = [
        torch.arange(part.count) < (1 if part.kind == HEADS else part.count * 5 // 8) for part in sublayers(model)
    ]
    biased = add_biases(model)
    cut, small = (shrink(biased, openings(biased, gates)) for _ in range(2))
    refit(model, small, rows)
    head, expected = task_head(model), answers(model, rows)
    before, after = (agreement(head, expected, answers(each, rows)).divergence for each in (cut, small))
    assert after < 0.5 * before


def test_a_layer_without_anything_keeps_the_mean(model_type):
    """The first attention, without heads, gives the mean of what the dense one gives to the words of all texts."""
    if model_type == "albert":
        pytest.skip("its first attention is its second one too")
    model, rows = add_biases(tiny_models.model(model_type)), batches(model_type)
    name = encoder_layers(model)[0].linears[OUTPUT]
    given = []
    hook = model.get_submodule(name).register_forward_hook(lambda *call: given.append(call[2]))
    answers(model, rows)
    hook.remove()
    small = shrink(model, [([], []) for _ in encoder_layers(model)])
    refit(model, small, rows)
    words = torch.cat([each[batch["attention_mask"].bool()] for each, batch in zip(given, rows, strict=True)])
    torch.testing.assert_close(small.get_submodule(name).bias, words.mean(0), rtol=0, atol=1e-5)


def test_the_classifier_learns_another_scale(model, model_type, monkeypatch):
    """Logits of twice the size, plus one, are linear in what the classifier is given: the refit finds them."""
    rows, other = batches(model_type, count=32), copy.deepcopy(model)
    with torch.no_grad():
        task_head(other).last_linear(other).weight.mul_(2)
        task_head(other).last_linear(other).bias.mul_(2).add_(1)
    monkeypatch.setattr(refitting, "RIDGE", 0.0)
    refit_last(other, model, rows)
    torch.testing.assert_close(answers(model, rows).values, answers(other, rows).values, rtol=0, atol=1e-2)
    assert task_head(model).last_linear(model).out_features == 3


def test_two_halves_are_the_whole():
    """The sums of two processes, in the order in which they are asked for."""
    model, rows = tiny_models.model("bert"), batches("bert", count=16)
    small = [shrink(model, [([0], range(8)), ([1], range(8))]) for _ in range(3)]
    refit(model, small[0], rows)
    sums = []
    refit(model, small[1], rows, reduce=lambda own: sums.append(own.clone()) or own)
    assert len(sums) == 4
    parts = []
    first = shrink(model, [([0], range(8)), ([1], range(8))])

    def of_first_layer(own):
        parts.append(own.clone())
        return own

    refit(model, first, rows[:2], reduce=of_first_layer)
    refit(model, shrink(model, [([0], range(8)), ([1], range(8))]), rows[2:], reduce=of_first_layer)
    torch.testing.assert_close(parts[0] + parts[4], sums[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answers(small[0], rows).values, answers(small[1], rows).values, rtol=0, atol=0)
