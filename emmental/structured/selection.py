"""Chooses the gates that stay: the most information for a budget."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from emmental.modules.binarizer import count_kept
from emmental.structured.gates import HEADS, Sublayer, encoder_weights

_HALVINGS = 200

MakeCandidate = Callable[[float], PreTrainedModel]
"""Price -> the small model that would be cut for it, before its weights are refitted."""
Tune = Callable[[MakeCandidate, float], float]
"""Candidates, and the price to start from -> the price that the last cut may cost."""


def weight_prices(parts: Sequence[Sublayer]) -> list[Tensor]:
    """For each sublayer float64 (count + 1,): weights of 0, 1, 2, ... open gates."""
    return [torch.arange(part.count + 1, dtype=torch.float64) * part.cost for part in parts]


def select(
    information: Sequence[Tensor], prices: Sequence[Tensor], budget: float, fewest: Sequence[int] | None = None
) -> list[Tensor]:
    """The gates to keep: in each sublayer those with the most information. Information and price decide how many.

    The numbers of open gates maximise information - x * price, with the smallest x that stays within the budget. So a
    price may include a fixed part: the first gate of a sublayer may cost more. The rest of the budget goes to single
    gates with the most information for their price. Ties go to the lower sublayer and gate.

    Args:
        information: float (count,) of each sublayer.
        prices: float (count + 1,) of each sublayer: the price of keeping 0, 1, ..., count gates; rising.
        budget: largest sum of the prices.
        fewest: gates of each sublayer that stay open at least, default 0. If even these cost too much, the sublayers
            whose last gate has the least information for its price go down to 0.

    Returns:
        bool (count,) of each sublayer, True for open.
    """
    orders = [each.double().cpu().argsort(descending=True, stable=True) for each in information]
    gains = [
        torch.cat([torch.zeros(1, dtype=torch.float64), each.double().cpu()[order].cumsum(0)])
        for each, order in zip(information, orders, strict=True)
    ]
    prices = [price.double().cpu() for price in prices]
    floors = _affordable(gains, prices, budget, list(fewest or [0] * len(gains)))
    counts = _counts(gains, prices, budget, floors)
    _spend_rest(gains, prices, budget, counts)
    masks = []
    for order, count in zip(orders, counts, strict=True):
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[:count]] = True
        masks.append(mask)
    return masks


@dataclass(frozen=True)
class Budget:
    """What a pruned model may cost.

    Attributes:
        prices: sublayers -> for each float64 (count + 1,), the price of 0, 1, 2, ... open gates.
        whole: price of everything that can be pruned away from the dense model.
        share: share of `whole` that may stay, from 0 to 1.
        tune: corrects the price of the last rung; None if prices are exact.
    """

    prices: Callable[[Sequence[Sublayer]], list[Tensor]]
    whole: float
    share: float
    tune: Tune | None = None

    def limit(self, rung: int, rungs: int) -> float:
        """Price at the end of a rung, counted from 1: the whole times share^(rung / rungs)."""
        if rung == rungs:
            return self.whole * self.share
        return self.whole * self.share ** (rung / rungs)


def weight_budget(model: nn.Module, keep: float) -> Budget:
    """A budget of encoder weights: the share `keep` of the matrices of `model`, rounded down to a weight."""
    whole = encoder_weights(model)
    return Budget(weight_prices, whole, count_kept(keep, whole) / whole)


def one_head_a_layer(parts: Sequence[Sublayer]) -> list[int]:
    """The `fewest` of `select` with which every layer keeps its best head."""
    return [1 if part.kind == HEADS else 0 for part in parts]


def _affordable(gains: list[Tensor], prices: list[Tensor], budget: float, floors: list[int]) -> list[int]:
    def worth(index: int) -> float:
        return float(gains[index][floors[index]] / max(float(prices[index][floors[index]]), 1e-300))

    for index in sorted((index for index, floor in enumerate(floors) if floor), key=worth):
        if sum(float(price[floor]) for price, floor in zip(prices, floors, strict=True)) <= budget:
            break
        floors[index] = 0
    return floors


def _counts(gains: list[Tensor], prices: list[Tensor], budget: float, floors: list[int]) -> list[int]:
    def counts_at(rate: float) -> list[int]:
        return [
            floor + int((gain[floor:] - rate * price[floor:]).argmax())  # the first and cheapest of equal ones
            for gain, price, floor in zip(gains, prices, floors, strict=True)
        ]

    def spent(counts: list[int]) -> float:
        return sum(float(price[count]) for price, count in zip(prices, counts, strict=True))

    low, high = 0.0, 1.0
    if spent(full := [len(price) - 1 for price in prices]) <= budget:
        return full
    while spent(counts_at(high)) > budget and high < 1e300:
        high *= 16.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2 if low else high / 16 if high > 1e-300 else 0.0
        if spent(counts_at(middle)) <= budget:
            high = middle
        else:
            low = middle
        if high <= low * (1 + 1e-15):
            break
    return counts_at(high)


def _spend_rest(gains: list[Tensor], prices: list[Tensor], budget: float, counts: list[int]) -> None:
    """Open further gates, one by one, while one fits."""
    rest = budget - sum(float(price[count]) for price, count in zip(prices, counts, strict=True))

    def entry(index: int) -> tuple[float, int, float]:
        count = counts[index]
        price = float(prices[index][count + 1] - prices[index][count])
        return -float(gains[index][count + 1] - gains[index][count]) / max(price, 1e-300), index, price

    waiting = [entry(index) for index, count in enumerate(counts) if count + 1 < len(prices[index])]
    heapq.heapify(waiting)
    while waiting:
        _, index, price = heapq.heappop(waiting)
        if price > rest:
            continue  # the later gates of this sublayer cost as much
        rest -= price
        counts[index] += 1
        if counts[index] + 1 < len(prices[index]):
            heapq.heappush(waiting, entry(index))
