"""Budgets of milliseconds: the table, its prices, and whole sublayers that cost more than they are worth."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import tiny_models
import torch

from emmental.errors import UserError
from emmental.shrinking import layer_sizes, shrink
from emmental.structured import speed
from emmental.structured.gates import sublayers
from emmental.structured.selection import Budget, select
from emmental.structured.speed import LayerTimes, SpeedTable, measure_speed, speed_budget, tuned_price

TABLE = SpeedTable(30.0, 4.0, [LayerTimes({0: 0.0, 1: 4.0, 2: 5.0}, {0: 0.0, 8: 2.0, 32: 8.0})] * 2)


def test_prices_lie_on_lines():
    heads, neurons, *_ = TABLE.prices(sublayers(tiny_models.model("bert")))
    assert heads.tolist() == [0.0, 4.0, 5.0]
    assert neurons[[0, 4, 8, 20, 32]].tolist() == [0.0, 1.0, 2.0, 5.0, 8.0]


def test_a_budget_by_hand():
    """Twice as fast is 15 ms; 4 of them are not the encoder's, so 11 of its 26 may stay."""
    budget = speed_budget(TABLE, tiny_models.model("bert"), 2.0)
    assert (budget.whole, budget.share) == (26.0, 11.0 / 26.0)
    assert speed_budget(TABLE, tiny_models.model("bert"), 1.0).share == 1.0


def test_a_mixed_model_that_is_slower_than_its_parts():
    """A whole of 20 ms has parts of 16: one of 15 ms has 11/16 of the way from 4 to 16, which leaves 8.25 of 26."""
    table = replace(TABLE, mixed=[(20.0, 16.0)])
    assert (table.parts(15.0), table.parts(25.0)) == (12.25, 23.0)
    assert speed_budget(table, tiny_models.model("bert"), 2.0).share == 8.25 / 26.0


@pytest.mark.parametrize("speedup", [0.5, 7.5, float("nan")])
def test_speeds_out_of_reach(speedup):
    with pytest.raises(UserError, match=r"speedup accepts 1 to below 7\.5"):
        speed_budget(TABLE, tiny_models.model("bert"), speedup)


def test_an_attention_that_costs_more_than_it_is_worth_goes():
    """With 12 ms: the neurons of the first layer (8 ms) and one head of the second (4 ms)."""
    parts = sublayers(tiny_models.model("bert"))
    information = [torch.tensor([1.0, 1.0]), torch.ones(32), torch.tensor([9.0, 1.0]), torch.full((32,), 0.1)]
    gates = select(information, TABLE.prices(parts), 12.0)
    assert [int(gate.sum()) for gate in gates] == [0, 32, 1, 0]


@pytest.fixture
def counted(monkeypatch):
    """Time is counted, not measured: 1 ms, for a layer 1 ms for any head, 0.5 ms a head, 0.125 ms a neuron.

    The neurons of the top layer cost nothing.
    """

    def milliseconds(model):
        sizes = layer_sizes(model)
        heads = sum((1.0 + size.heads / 2) * bool(size.heads) for size in sizes)
        return 1.0 + heads + sum(size.neurons / 8 for size in sizes[:-1])

    monkeypatch.setattr(speed, "forward_times", lambda models, *_: [milliseconds(model) for model in models])


def test_the_table_of_a_model(counted):
    table = measure_speed(tiny_models.model("bert"))
    heads, neurons = {0: 0.0, 1: 1.5, 2: 2.0}, {0: 0.0, 1: 0.125, 2: 0.25, 4: 0.5, 8: 1.0, 16: 2.0, 32: 4.0}
    top = LayerTimes(heads, dict.fromkeys((0, 1, 16, 32), 0.0))
    assert (table.dense, table.rest, table.layers) == (9.0, 1.0, [LayerTimes(heads, neurons), top])
    # Half: two thirds of the bottom layer (2 heads, 21 neurons), a third of the top one (1, 11); and so on.
    assert table.mixed == [(w, w) for w in (1 + 2 + 21 / 8 + 1.5, 1 + 1.5 + 11 / 8 + 1.5, 1 + 1.5 + 5 / 8 + 1.5)]


def test_the_price_is_tuned_by_timing():
    """An engine in which a neuron takes 1.25 times what the table says; three times as fast as 9 ms is 3 ms.

    2 ms of neurons take 3.5 ms, so 1.5 ms may stay: 12 neurons take 2.875 ms, which leaves room for 1.625 ms. The mean
    of both is 1.5625 ms: 12 neurons, room for 1.6875 ms. The mean of three is 1.604 ms: 13 neurons take 3.03 ms.
    """
    model, tried = tiny_models.model("bert"), []

    def candidate(price):
        tried.append(price)
        return shrink(model, [(range(0), range(round(8 * price))), (range(0), range(0))])

    def timed(models, batch_size, length):
        assert (batch_size, length) == (8, 16)
        dense, small = models
        assert layer_sizes(dense) == layer_sizes(model)
        return [9.0, 1.0 + 1.25 * layer_sizes(small)[0].neurons / 8]

    budget = Budget(TABLE.prices, 26.0, 0.5)
    assert tuned_price(budget, model, 3.0, candidate, 2.0, shape=(8, 16), timed=timed) == tried[-1]
    assert tried == pytest.approx([2.0, 1.5, 1.5625, 77 / 48])


def test_a_speed_that_is_never_close_takes_the_mean_of_the_last_estimates():
    """Every model takes 4 of 8 ms, 4/3 too many: 2 - 4/3, then the mean of 2/3 and 0, then of 2/3, 0 and 0, then 0."""
    model, tried = tiny_models.model("bert"), []
    budget = Budget(TABLE.prices, 26.0, 0.5)
    price = tuned_price(budget, model, 3.0, lambda price: tried.append(price) or model, 2.0, timed=lambda *_: [8, 4])
    assert tried == pytest.approx([2, 2 / 3, 1 / 3, 2 / 9, 0, 0])
    assert price == 0


def test_times_that_fall_by_chance_are_averaged(monkeypatch):
    """One head takes 3 ms more than none, two take 1 ms: 2 ms each."""
    model = tiny_models.model("albert")
    monkeypatch.setattr(speed, "forward_times", lambda *_: [8.0, 2.0, 5.0, 3.0, *[8.0] * 6, 8.0, 5.0, 3.0])
    heads = measure_speed(model).layers[0].heads
    assert heads[1] == heads[2] > 0


def test_the_table_as_text():
    assert TABLE.lines() == [
        "30.00 ms for the dense model, 4.00 ms of them outside heads and neurons",
        "ms of the bottom layer: heads 0: 0.00, 1: 4.00, 2: 5.00; neurons 0: 0.00, 8: 2.00, 32: 8.00",
        "ms of the top layer: heads 0: 0.00, 1: 4.00, 2: 5.00; neurons 0: 0.00, 8: 2.00, 32: 8.00",
    ]


def test_layers_that_are_read_alike_are_timed_together(monkeypatch):
    """ALBERT's one layer, and the layers of a classifier that reads the mean of all tokens."""
    timed = []
    monkeypatch.setattr(
        speed, "forward_times", lambda models, *_: timed.extend(models) or [1.0 + i for i in range(len(models))]
    )
    measure_speed(tiny_models.model("albert"))
    mean = measure_speed(tiny_models.model("modernbert", classifier_pooling="mean"))
    assert len(timed) == 2 * (2 + 2 + 6 + 3)
    assert mean.layers[0] == mean.layers[1]


def test_times_are_measured():
    model = tiny_models.model("bert")
    table = measure_speed(model, length=16)
    assert table.dense > 0
    for layer in table.layers:
        assert list(layer.heads) == [0, 1, 2]
        assert list(layer.heads.values()) == sorted(layer.heads.values())


@pytest.mark.parametrize(
    "damage",
    [
        {"layers": None},
        {"mixed": [[1.0]]},
        {"dense": "fast"},
        {"rest": -1.0},
        {"layers": [{"heads": {"0": 0.0}, "neurons": {"0": 0.0, "3" * 400: 1.0}}] * 2},
        {"layers": [{"heads": {}, "neurons": {"0": 0.0}}] * 2},
    ],
)
def test_a_damaged_table_is_a_value_error(damage):
    stored = json.loads(json.dumps(asdict(TABLE)))
    assert SpeedTable.of(stored, 2) == TABLE
    with pytest.raises(ValueError, match="the table of milliseconds is damaged"):
        SpeedTable.of(stored | damage, 2)
