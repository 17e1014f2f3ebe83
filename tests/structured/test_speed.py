"""Budgets of milliseconds: the table, its prices, and whole sublayers that cost more than they are worth."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from emmental.errors import UserError
from emmental.shrinking import layer_sizes
from emmental.structured import speed
from emmental.structured.gates import sublayers
from emmental.structured.selection import select
from emmental.structured.speed import SpeedTable, measure_speed, speed_budget

TABLE = SpeedTable(dense=30.0, rest=4.0, heads={0: 0.0, 1: 4.0, 2: 5.0}, neurons={0: 0.0, 8: 2.0, 32: 8.0})


def test_prices_lie_on_lines():
    heads, neurons, *_ = TABLE.prices(sublayers(tiny_models.model("bert")))
    assert heads.tolist() == [0.0, 4.0, 5.0]
    assert neurons[[0, 4, 8, 20, 32]].tolist() == [0.0, 1.0, 2.0, 5.0, 8.0]


def test_a_budget_by_hand():
    """Twice as fast is 15 ms; 4 of them are not the encoder's, so 11 of its 26 may stay."""
    budget = speed_budget(TABLE, tiny_models.model("bert"), 2.0)
    assert (budget.whole, budget.share) == (26.0, 11.0 / 26.0)
    assert speed_budget(TABLE, tiny_models.model("bert"), 1.0).share == 1.0


@pytest.mark.parametrize("speedup", [0.5, 7.5, float("nan")])
def test_speeds_out_of_reach(speedup):
    with pytest.raises(UserError, match=r"speedup accepts 1 to 7\.5"):
        speed_budget(TABLE, tiny_models.model("bert"), speedup)


def test_an_attention_that_costs_more_than_it_is_worth_goes():
    """With 12 ms: the neurons of the first layer (8 ms) and one head of the second (4 ms)."""
    parts = sublayers(tiny_models.model("bert"))
    information = [torch.tensor([1.0, 1.0]), torch.ones(32), torch.tensor([9.0, 1.0]), torch.full((32,), 0.1)]
    gates = select(information, TABLE.prices(parts), 12.0)
    assert [int(gate.sum()) for gate in gates] == [0, 32, 1, 0]


@pytest.fixture
def counted(monkeypatch):
    """Time is counted, not measured: 1 ms, for each layer 1 ms for any head, 0.5 ms a head, 0.125 ms a neuron."""

    def milliseconds(model):
        return 1.0 + sum((1.0 + size.heads / 2) * bool(size.heads) + size.neurons / 8 for size in layer_sizes(model))

    monkeypatch.setattr(speed, "_medians", lambda models, *_: [milliseconds(model) for model in models])


def test_the_table_of_a_model(counted):
    table = measure_speed(tiny_models.model("bert"))
    assert table == SpeedTable(
        13.0, 1.0, {0: 0.0, 1: 1.5, 2: 2.0}, {0: 0.0, 1: 0.125, 2: 0.25, 4: 0.5, 8: 1.0, 16: 2.0, 32: 4.0}
    )


def test_times_are_measured():
    model = tiny_models.model("bert")
    table = measure_speed(model, length=16)
    assert table.dense > 0
    assert list(table.heads) == [0, 1, 2]
    assert list(table.heads.values()) == sorted(table.heads.values())
