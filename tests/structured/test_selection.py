"""Which gates stay, by numbers that fit on paper."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from emmental.errors import UserError
from emmental.structured.gates import HEADS, NEURONS, Sublayer, sublayers
from emmental.structured.selection import Budget, one_head_a_layer, select, weight_budget, weight_prices

PARTS = [Sublayer(0, HEADS, "a", 2, 8, 10), Sublayer(0, NEURONS, "b", 4, 1, 2)]


def chosen(information, budget, prices=None, fewest=None):
    masks = select([torch.tensor(each) for each in information], prices or weight_prices(PARTS), budget, fewest)
    return [mask.nonzero().flatten().tolist() for mask in masks]


def test_highest_information_for_its_price():
    """Per weight: heads 3 and 1, neurons 4, 2, 2, 0.5."""
    information = [[10.0, 30.0], [8.0, 4.0, 1.0, 4.0]]
    assert chosen(information, 28) == [[0, 1], [0, 1, 2, 3]]
    assert chosen(information, 27) == [[0, 1], [0, 1, 3]]
    assert chosen(information, 16) == [[1], [0, 1, 3]]
    assert chosen(information, 15) == [[1], [0, 1]]
    assert chosen(information, 12) == [[1], [0]]
    assert chosen(information, 9) == [[], [0, 1, 2, 3]]  # no head fits, so neurons fill the rest
    assert chosen(information, 0) == [[], []]


def test_ties_go_to_the_lower_number():
    assert chosen([[10.0, 10.0], [2.0, 2.0, 2.0, 2.0]], 14) == [[0], [0, 1]]
    assert chosen([[0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], 14) == [[0], [0, 1]]


def test_every_layer_keeps_its_best_head():
    information = [[1.0, 2.0], [80.0, 40.0, 10.0, 40.0]]
    assert chosen(information, 14) == [[], [0, 1, 2, 3]]
    assert chosen(information, 14, fewest=one_head_a_layer(PARTS)) == [[1], [0, 1]]
    assert chosen(information, 9, fewest=one_head_a_layer(PARTS)) == [[], [0, 1, 2, 3]]  # not even one head fits


def test_a_fixed_price_closes_whole_sublayers():
    """The head is worth more for its own 2 ms than the neurons, but its sublayer costs 10 ms to be there at all."""
    prices = [torch.tensor([0.0, 12.0, 14.0]), torch.tensor([0.0, 2.0, 4.0, 6.0, 8.0])]
    information = [[6.0, 5.0], [3.0, 2.0, 2.0, 2.0]]
    assert chosen(information, 12.0, prices) == [[], [0, 1, 2, 3]]
    assert chosen(information, 22.0, prices) == [[0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize("keep", [0.03, 0.1, 0.29, 0.5, 0.999, 1.0])
def test_the_share_is_exact(keep):
    """Never above the share, and so close to it that no closed gate fits in."""
    model = tiny_models.model("bert")
    parts, budget = sublayers(model), weight_budget(model, keep)
    generator = torch.Generator().manual_seed(0)
    information = [torch.rand(part.count, generator=generator) for part in parts]
    masks = select(information, weight_prices(parts), budget.limit(1, 1), one_head_a_layer(parts))
    kept = sum(int(mask.sum()) * part.cost for mask, part in zip(masks, parts, strict=True))
    assert budget.whole == 4096
    closed = [part.cost for mask, part in zip(masks, parts, strict=True) if not mask.all()]
    assert 0 <= keep * 4096 - kept < min(closed, default=1)


def test_rungs_take_equal_parts():
    budget = Budget(weight_prices, 1000.0, 0.125)
    assert [budget.limit(rung, 3) for rung in (1, 2, 3)] == pytest.approx([500.0, 250.0, 125.0])


def test_a_share_that_cannot_be():
    with pytest.raises(UserError, match="from 0 to 1"):
        weight_budget(tiny_models.model("bert"), 1.5)
