"""Measures what heads and neurons cost in milliseconds on this machine, and makes budgets of speed from that."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from emmental.errors import UserError
from emmental.first_token import first_token_only
from emmental.shrinking import layer_sizes, shrink
from emmental.structured.gates import HEADS, Sublayer, sublayers
from emmental.structured.selection import Budget
from emmental.structured.stepping import evaluating

_FRACTIONS = (16, 8, 4, 2, 1)
_FEWEST_ROUNDS, _ROUNDS, _SECONDS = 5, 40, 6.0
"""Models are timed in turn: five rounds or more, up to this number, and no new one after this number of seconds."""


Timed = Callable[[Sequence[PreTrainedModel], int, int], list[float]]
"""Models, rows, tokens of each -> median milliseconds of each model's forward pass; the models take turns."""


@dataclass(frozen=True)
class SpeedTable:
    """Milliseconds of a forward pass, and of its parts.

    Attributes:
        dense: of the model as it is.
        rest: of everything that cannot be pruned: embeddings, LayerNorms, residual sums, pooler, classifier.
        heads: number of heads -> of one layer's attention; 0 for none. The step from 0 to 1 holds its fixed price.
        neurons: number of neurons -> of one layer's feed-forward.
    """

    dense: float
    rest: float
    heads: dict[int, float]
    neurons: dict[int, float]

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> SpeedTable:
        """The table that `dataclasses.asdict` gave and JSON kept, which knows numbers as keys only as text.

        Raises:
            ValueError: a time is no finite number from 0, or that of no heads, no neurons or the whole is missing; an
                object of another form raises what its use raises.
        """
        heads, neurons = ({int(n): float(ms) for n, ms in stored[name].items()} for name in ("heads", "neurons"))
        table = cls(float(stored["dense"]), float(stored["rest"]), heads, neurons)
        times = [table.dense, table.rest, *heads.values(), *neurons.values()]
        whole = table.rest > 0 and 0 in heads and 0 in neurons and min(*heads, *neurons) == 0
        if not whole or not all(math.isfinite(ms) and ms >= 0 for ms in times):
            raise ValueError("the table of milliseconds is damaged")
        return table

    def prices(self, parts: Sequence[Sublayer]) -> list[Tensor]:
        """For each sublayer float64 (count + 1,): milliseconds of 0, 1, 2, ... open gates.

        Numbers of gates that were not measured lie on straight lines between those that were.
        """
        return [
            torch.tensor(
                [_interpolated(self.heads if part.kind == HEADS else self.neurons, k) for k in range(part.count + 1)],
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
        timed: the engine to measure in; default: PyTorch with its own number of threads.
    """
    sizes = layer_sizes(model)
    most_heads, most_neurons = max(size.heads for size in sizes), max(size.neurons for size in sizes)
    shapes = [(most_heads, most_neurons), (0, 0)]
    shapes += [(count, 0) for count in _grid(most_heads)] + [(0, count) for count in _grid(most_neurons)]
    small = [
        shrink(model, [(range(min(heads, size.heads)), range(min(neurons, size.neurons))) for size in sizes]).eval()
        for heads, neurons in shapes
    ]
    dense, rest, *times = (timed or _medians)(small, batch_size, length)
    tables: tuple[dict[int, float], dict[int, float]] = ({0: 0.0}, {0: 0.0})
    for (heads, neurons), each in zip(shapes[2:], times, strict=True):
        table = tables[0] if heads else tables[1]
        table[heads or neurons] = max(*table.values(), (each - rest) / len(sizes))  # more gates are never cheaper
    # The two halves do not add up exactly to their cost together, so both are scaled to the dense model.
    together = len(sizes) * (tables[0][most_heads] + tables[1][most_neurons])
    scale = max(dense - rest, 0.0) / together if together else 0.0
    scaled = [{count: each * scale for count, each in table.items()} for table in tables]
    return SpeedTable(dense, rest, *scaled)


def speed_budget(table: SpeedTable, model: PreTrainedModel, speedup: float) -> Budget:
    """The milliseconds of a model that is `speedup` times as fast as `model`.

    Raises:
        UserError: it is below 1, or more than an encoder without heads and neurons reaches.
    """
    most = table.dense / table.rest
    if not 1.0 <= speedup < most:
        raise UserError(
            f"speedup accepts 1 to {most:.1f}, what an empty encoder reaches on this machine, not {speedup}"
        )
    whole = sum(float(price[-1]) for price in table.prices(sublayers(model)))
    share = (table.dense / speedup - table.rest) / whole if whole else 1.0
    return Budget(table.prices, whole, min(share, 1.0))


def _grid(most: int) -> list[int]:
    return sorted({max(1, most // part) for part in _FRACTIONS} | {1} if most else set())


def _interpolated(table: dict[int, float], count: int) -> float:
    counts = sorted(table)
    above = next((each for each in counts if each >= count), counts[-1])
    below = max((each for each in counts if each <= count), default=above)
    if above == below:
        return table[above]
    part = (count - below) / (above - below)
    return table[below] + part * (table[above] - table[below])


def _medians(models: Sequence[nn.Module], batch_size: int, length: int) -> list[float]:
    """Milliseconds of each model's forward pass; all have the same inputs and take turns."""
    generator = torch.Generator().manual_seed(0)
    device = next(models[0].parameters()).device
    ids = torch.randint(models[0].config.vocab_size, (batch_size, length), generator=generator).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
            stack.enter_context(first_token_only(model))
        end = time.perf_counter() + _SECONDS
        for turn in range(_ROUNDS):
            if turn >= _FEWEST_ROUNDS and time.perf_counter() >= end:
                break
            for model, own in zip(models, times, strict=True):
                model(**inputs)  # a first pass fills the caches, which the model before has emptied
                own.append(_timed(model, inputs))
    return [1000.0 * statistics.median(own) for own in times]


def _timed(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    _wait(inputs)
    begin = time.perf_counter()
    model(**inputs)
    _wait(inputs)
    return time.perf_counter() - begin


def _wait(inputs: dict[str, Tensor]) -> None:
    if inputs["input_ids"].is_cuda:
        torch.cuda.synchronize()
