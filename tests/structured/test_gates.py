"""Gates: what they multiply, what they cost, and that closing one is cutting it."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from tiny_batches import batches

from emmental.architectures import encoder_linears
from emmental.runs.optimization import Learner, adamw, linear_schedule, parameter_groups
from emmental.runs.precision import Precision
from emmental.shrinking import shrink
from emmental.structured.gates import HEADS, NEURONS, all_open, encoder_weights, gated, openings, sublayers


def test_costs_by_hand():
    """BERT, hidden 16, two heads of 8: a head is 3 * 8 rows and 8 columns of 16; a neuron is one of each."""
    parts = sublayers(tiny_models.model("bert"))
    assert [(part.layer, part.kind, part.count, part.width, part.cost) for part in parts] == [
        (0, HEADS, 2, 8, 512),
        (0, NEURONS, 32, 1, 32),
        (1, HEADS, 2, 8, 512),
        (1, NEURONS, 32, 1, 32),
    ]
    assert parts[1].linear == "bert.encoder.layer.0.output.dense"


def test_costs_of_unusual_types():
    costs = {name: [part.cost for part in sublayers(tiny_models.model(name))] for name in tiny_models.MODEL_TYPES}
    assert costs["albert"] == [512, 32]  # both layers are the same weights
    assert costs["modernbert"] == [512, 48, 512, 48]  # a neuron has two rows: input and gate
    own_positions = tiny_models.model("deberta-v2", share_att_key=False)
    assert [part.cost for part in sublayers(own_positions)] == [768, 32, 768, 32]  # two more projections


def test_every_weight_belongs_to_a_gate(model):
    weights = sum(model.get_submodule(name).weight.numel() for name in encoder_linears(model))
    assert encoder_weights(model) == weights


def test_open_gates_change_nothing_and_go_away(model, model_type):
    (batch,) = batches(model_type, count=4)
    with torch.no_grad():
        plain = model(**batch).logits
        with gated(model, all_open(model)):
            assert torch.equal(model(**batch).logits, plain)
        with gated(model, [gate * 0.5 for gate in all_open(model)]):
            assert not torch.allclose(model(**batch).logits, plain, atol=1e-3)
        assert torch.equal(model(**batch).logits, plain)


def test_gates_of_examples(model, model_type):
    """A row of gates works on its own example, as the same gates do on a batch of that example alone."""
    (batch,) = batches(model_type, count=4)
    gates = [torch.rand(4, gate.shape[1]) for gate in all_open(model, 4)]
    with torch.no_grad():
        with gated(model, gates):
            together = model(**batch).logits
        for row in range(4):
            with gated(model, [gate[row] for gate in gates]):
                alone = model(**{name: each[row : row + 1] for name, each in batch.items()}).logits
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_closed_is_cut(model, model_type):
    (batch,) = batches(model_type, count=4)
    gates = [(torch.arange(part.count) % 2 == 1) for part in sublayers(model)]
    small = shrink(model, openings(model, gates))
    with torch.no_grad(), gated(model, gates):
        torch.testing.assert_close(small(**batch).logits, model(**batch).logits, rtol=0, atol=1e-5)
    assert [part.count for part in sublayers(small)] == [part.count // 2 for part in sublayers(model)]


def test_training_what_was_cut_is_training_with_closed_gates(model, model_type):
    """Adam, clipping, decay, no dropout: what has open gates learns, cut out, what it learns in the whole."""
    gates = [torch.arange(part.count) % 3 == 1 for part in sublayers(model)]
    gates[-2].zero_()  # the top layer's attention is gone
    model = model.double()  # so that rounding is far below the epsilon of Adam, which would blow it up
    small = shrink(model, openings(model, gates))
    with gated(model, gates):
        whole_losses = trained(model, model_type)
    cut_losses = trained(small, model_type)
    assert whole_losses == pytest.approx(cut_losses, abs=1e-5)
    assert cut_losses[0] - cut_losses[-2] > 0.01  # of the same batch: something was learnt
    expected = shrink(model, openings(model, gates)).state_dict()
    assert max(float((value - expected[name]).abs().max()) for name, value in small.state_dict().items()) < 1e-5


def trained(model, model_type):
    """The losses of eight updates of the trainer's own kind."""
    optimizer = adamw(parameter_groups(model, 3e-3, 0.01), 1e-8)
    loop = Learner(model, optimizer, linear_schedule(optimizer, 2, 10), Precision(torch.device("cpu")), 1.0)
    losses = []
    for batch in batches(model_type, count=12, size=6, labels=True) * 4:
        loop.begin_update(1)
        loss = model.train()(**batch).loss
        loop.optimize(loss)
        losses.append(loss.item())
    return losses


def test_sublayers_without_gates_are_left_out():
    model = tiny_models.model("bert")
    small = shrink(model, [([], [3]), ([0, 1], [])])
    assert [(part.layer, part.kind, part.count) for part in sublayers(small)] == [(0, NEURONS, 1), (1, HEADS, 2)]
    assert openings(small, [torch.tensor([True]), torch.tensor([False, True])]) == [([], [0]), ([1], [])]


def test_gates_must_fit():
    model = tiny_models.model("bert")
    with pytest.raises(ValueError, match="shorter"), gated(model, all_open(model)[:-1]):
        pass
