"""Measures what heads and neurons cost in milliseconds on this machine, and makes budgets of speed from that."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import Tensor
from transformers import PreTrainedModel

from emmental.errors import UserError
from emmental.first_token import reads_first_token
from emmental.latency import forward_times, on_cpu
from emmental.shrinking import Openings, layer_sizes, shrink
from emmental.structured.gates import HEADS, NEURONS, Sublayer, sublayers
from emmental.structured.selection import Budget, MakeCandidate

logger = logging.getLogger(__name__)

_FRACTIONS, _FRACTIONS_OF_TOP = (16, 8, 4, 2, 1), (2, 1)
"""A layer is timed with 1/16, 1/8, ... of its heads and neurons."""
_WHOLE_MODELS = (0.5, 0.25, 0.125)
"""The shares of heads and neurons that the mixed models keep."""
_TRIES, _AVERAGED, _CLOSE = 6, 3, 0.02
"""Candidates that are timed at most, how many estimates are averaged, and how close to the speed is close enough."""
_MOST = 2**31
"""No layer has as many neurons."""


Timed = Callable[[Sequence[PreTrainedModel], int, int], list[float]]
"""Models, rows, tokens of each -> median milliseconds of each model's forward pass; the models take turns."""


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer's halves.

    Attributes:
        heads: number of heads -> milliseconds of the attention. The step from 0 to 1 includes its fixed cost.
        neurons: number of neurons -> milliseconds of the feed-forward.
    """

    heads: dict[int, float]
    neurons: dict[int, float]

    def price(self, kind: str, count: int) -> float:
        """Milliseconds of a half with `count` gates, interpolated linearly between the measured counts.

        Args:
            kind: `HEADS` or `NEURONS`.
            count: number of gates.
        """
        table = self.heads if kind == HEADS else self.neurons
        return float(np.interp(count, sorted(table), [table[each] for each in sorted(table)]))


@dataclass(frozen=True)
class SpeedTable:
    """Milliseconds of a forward pass, and of its parts.

    Attributes:
        dense: of the model as it is.
        rest: of everything that cannot be pruned: embeddings, LayerNorms, residual sums, pooler, classifier.
        layers: of each layer, from the bottom to the top.
        mixed: for models whose layers differ, milliseconds of the whole and the sum of its parts by this table.
    """

    dense: float
    rest: float
    layers: list[LayerTimes]
    mixed: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, stored: Mapping[str, Any], layers: int) -> SpeedTable:
        """The table read back from JSON, as `dataclasses.asdict` gave it. JSON has text for the number keys.

        Raises:
            ValueError: the object has another form, a time is not a finite number from 0, or that of no heads, no
                neurons, a layer or the whole is missing.
        """
        try:
            each_layer = [
                LayerTimes(*({int(n): float(ms) for n, ms in each[kind].items()} for kind in (HEADS, NEURONS)))
                for each in stored["layers"]
            ]
            mixed = [(float(total), float(parts)) for total, parts in stored["mixed"]]
            table = cls(float(stored["dense"]), float(stored["rest"]), each_layer, mixed)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError("the table of milliseconds is damaged") from error
        halves = [half for layer in each_layer for half in (layer.heads, layer.neurons)]
        times = [table.dense, table.rest, *itertools.chain(*mixed, *(half.values() for half in halves))]
        is_complete = (
            table.rest > 0
            and len(each_layer) == layers
            and all(half and min(half) == 0 and max(half) < _MOST for half in halves)
        )
        if not is_complete or not all(math.isfinite(ms) and ms >= 0 for ms in times):
            raise ValueError("the table of milliseconds is damaged")
        return table

    def lines(self) -> list[str]:
        """The table as text, for the bottom and the top layer; the layers between are like the bottom one."""
        lines = [f"{self.dense:.2f} ms for the dense model, {self.rest:.2f} ms of them outside heads and neurons"]
        for name, layer in {"bottom": self.layers[0], "top": self.layers[-1]}.items():
            halves = {"heads": layer.heads, "neurons": layer.neurons}
            shown = [
                f"{kind} {', '.join(f'{n}: {ms:.2f}' for n, ms in half.items())}" for kind, half in halves.items()
            ]
            lines.append(f"ms of the {name} layer: {'; '.join(shown)}")
        return lines

    def parts(self, total: float) -> float:
        """The sum of the parts of a model that takes `total` milliseconds, interpolated linearly between `mixed`."""
        totals, sums = np.array(sorted([(self.rest, self.rest), (self.dense, self.dense), *self.mixed])).T
        return float(np.interp(total, totals, np.maximum.accumulate(sums)))

    def prices(self, parts: Sequence[Sublayer]) -> list[Tensor]:
        """For each sublayer float64 (count + 1,): milliseconds of 0, 1, 2, ... open gates."""
        return [
            torch.tensor(
                [self.layers[part.layer].price(part.kind, count) for count in range(part.count + 1)],
                dtype=torch.float64,
            )
            for part in parts
        ]


def measure_speed(
    model: PreTrainedModel, batch_size: int = 1, length: int = 128, timed: Timed | None = None
) -> SpeedTable:
    """Time the model, and copies of it with fewer heads or neurons.

    Args:
        model: stays as it is.
        batch_size, length: rows, and tokens of each; no padding.
        timed: the engine to measure in; default: PyTorch on the CPU with its own number of threads.
    """
    model, sizes = on_cpu(model), layer_sizes(model)
    layers = range(len(sizes))
    # Most classifiers read one token of the top layer: its gates cost less than those of the others.
    apart = len(sizes) > 1 and reads_first_token(model)
    places = [(layers[:-1], _FRACTIONS), (layers[-1:], _FRACTIONS_OF_TOP)] if apart else [(layers, _FRACTIONS)]
    most = {HEADS: max(size.heads for size in sizes), NEURONS: max(size.neurons for size in sizes)}
    trials = [
        (place, kind, count)
        for place, fractions in places
        for kind in (HEADS, NEURONS)
        for count in _grid(most[kind], fractions)
    ]
    shapes = [(layers, most), ((), most), *((place, {kind: count}) for place, kind, count in trials)]
    mixed = [_mixed(model, share) for share in _WHOLE_MODELS]
    models = [*(_with_at_most(model, *shape) for shape in shapes), *mixed]
    dense, rest, *times = (timed or forward_times)(models, batch_size, length)
    tables: dict[tuple[int, str], dict[int, float]] = {}
    for (place, kind, count), each in zip(trials, times[: len(trials)], strict=True):
        for layer in place:
            tables.setdefault((layer, kind), {0: 0.0})[count] = max((each - rest) / len(place), 0.0)
    unscaled = [
        LayerTimes(*(_rising(tables.get((layer, kind), {0: 0.0})) for kind in (HEADS, NEURONS))) for layer in layers
    ]
    # The two halves do not add up exactly to their cost together, so both are scaled to the dense model.
    together = sum(
        layer.price(HEADS, size.heads) + layer.price(NEURONS, size.neurons)
        for layer, size in zip(unscaled, sizes, strict=True)
    )
    scale = max(dense - rest, 0.0) / together if together else 0.0
    scaled = [LayerTimes(_times(layer.heads, scale), _times(layer.neurons, scale)) for layer in unscaled]
    table = SpeedTable(dense, rest, scaled)
    for each, total in zip(mixed, times[len(trials) :], strict=True):
        parts = sublayers(each)
        prices = zip(parts, table.prices(parts), strict=True)
        table.mixed.append((total, rest + sum(float(price[part.count]) for part, price in prices)))
    return table


def _with_at_most(model: PreTrainedModel, place: Sequence[int], most: Mapping[str, int]) -> PreTrainedModel:
    """A copy with at most these numbers of heads and neurons in the layers of `place`, and none in the others."""
    openings = [
        tuple(
            range(min(most.get(kind, 0), count) if index in place else 0)
            for kind, count in ((HEADS, size.heads), (NEURONS, size.neurons))
        )
        for index, size in enumerate(layer_sizes(model))
    ]
    return _copy(model, openings)


def _mixed(model: PreTrainedModel, share: float) -> PreTrainedModel:
    """A copy with about this share of heads and neurons: most at the bottom, as pruning mostly leaves them."""
    sizes = layer_sizes(model)
    openings = []
    for index, size in enumerate(sizes):
        here = min(1.0, share * 2 * (len(sizes) - index) / (len(sizes) + 1))
        openings.append((range(math.ceil(here * size.heads)), range(round(here * size.neurons))))
    return _copy(model, openings)


def _copy(model: PreTrainedModel, openings: Openings) -> PreTrainedModel:
    small = shrink(model, openings).eval()
    small.set_input_embeddings(model.get_input_embeddings())  # a large part of the memory, the same in all
    return small


def _rising(table: Mapping[int, float]) -> dict[int, float]:
    """The closest table in which more gates are never cheaper: what falls by chance is averaged."""
    counts = sorted(table)
    return dict(zip(counts, isotonic_regression([table[count] for count in counts]).x.tolist(), strict=True))


def _times(table: Mapping[int, float], factor: float) -> dict[int, float]:
    return {count: each * factor for count, each in table.items()}


def speed_budget(table: SpeedTable, model: PreTrainedModel, speedup: float, called: str = "speedup") -> Budget:
    """The milliseconds of a model that is `speedup` times as fast as `model`.

    Raises:
        UserError: `speedup` is below 1, or not below that of an encoder without heads and neurons.
    """
    most = math.floor(10 * table.dense / table.rest) / 10
    if not 1.0 <= speedup < most:
        raise UserError(
            f"{called} accepts 1 to below {most:g}, the speed-up of an empty encoder on this machine, not {speedup:g}"
        )
    encoder = sum(float(price[-1]) for price in table.prices(sublayers(model)))
    share = (table.parts(table.dense / speedup) - table.rest) / encoder if encoder else 1.0
    return Budget(table.prices, encoder, min(share, 1.0))


def tuned_price(
    budget: Budget,
    dense: PreTrainedModel,
    speedup: float,
    candidate: MakeCandidate,
    price: float,
    *,
    shape: tuple[int, int] = (1, 128),
    timed: Timed | None = None,
) -> float:
    """The price at which a model is as fast as asked, found by timing candidates beside the dense model.

    A table of single layers does not know how an engine runs unequal layers one after the other.

    Args:
        budget: of `speed_budget`.
        candidate: price -> the model that would be cut for it. Its weights do not matter.
        price: to start from.
        shape: rows, and tokens of each.
        timed: the engine to measure in; default: PyTorch on the CPU.

    Returns:
        The price of a model that is close enough, or the mean of the last estimates: each time wanders by chance.
    """
    dense, estimates = copy.deepcopy(dense).cpu(), []
    for _ in range(_TRIES):
        small = candidate(price).cpu()
        with torch.autocast("cpu", enabled=False):
            dense_ms, small_ms = (timed or forward_times)([dense, small], *shape)
        logger.info("%.2f ms, the dense model %.2f: %.2f times as fast", small_ms, dense_ms, dense_ms / small_ms)
        if abs(dense_ms / small_ms / speedup - 1) <= _CLOSE:
            break
        estimates.append(min(max(price + dense_ms / speedup - small_ms, 0.0), budget.whole))
        price = statistics.mean(estimates[-_AVERAGED:])
    return price


def _grid(most: int, fractions: Sequence[int]) -> list[int]:
    return sorted({max(1, most // part) for part in fractions} | {1} if most else set())
