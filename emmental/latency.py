"""Times models for a batch on this machine: the one place where inference is timed.

Models take turns, so other work on the machine slows all of them down, and ratios stay fair.
"""

from __future__ import annotations

import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from emmental.errors import UserError
from emmental.shrinking import first_token_form

Runner = Callable[[Tensor, Tensor, Tensor], object]
"""`(input_ids, attention_mask, token_type_ids)`, each (batch, length) int64 -> anything."""

_SECONDS_OF_EACH, _SECONDS_TOGETHER = 0.5, 10.0
"""Fewest seconds for each model when many are timed, and seconds for all of them together."""
_CALLS_PER_TURN = 3
_PAUSE_SECONDS = 0.1
"""Pause before each turn: after its last call, the threads of an engine keep the cores busy for a while.

The pause is a busy loop. After a sleep the system may wake PyTorch's threads on one core, where they hinder each other
for milliseconds: small models then took six times as long (`runs/threads.py` lets waiting threads sleep soon).
"""


@dataclass(frozen=True)
class Latency:
    """Times of one model for one shape of batch.

    Attributes:
        model: the name it was measured under.
        batch, length: sequences, and tokens of each; no padding.
        threads: number of threads of PyTorch. Other engines have their own number.
        median_ms: of the calls, in milliseconds.
        low_ms, high_ms: a quarter of the calls was faster than low_ms, and a quarter slower than high_ms.
        calls: number of timed calls.
    """

    model: str
    batch: int
    length: int
    threads: int
    median_ms: float
    low_ms: float
    high_ms: float
    calls: int


def measure(
    models: Mapping[str, Runner],
    batch: int,
    length: int,
    threads: int,
    vocab_size: int,
    seconds: float = 2.0,
    most_turns: int = 50,
) -> list[Latency]:
    """Time models on the same random tokens, in turns of three calls.

    A classifier that reads only the first token computes its last layer for that one, as in every other engine.
    Before each turn a model runs once untimed, because the model before it has emptied the caches.

    Args:
        models: name -> model or session.
        batch, length: shape of the input.
        threads: number of PyTorch's threads during the measurement.
        vocab_size: token numbers are drawn below it.
        seconds: turns begin until this much time for each model is spent; each model has at least two turns.
        most_turns: most turns; at least two are made.

    Returns:
        One row for each model, in the order given.

    Raises:
        UserError: a number below 1, or no model.
    """
    if not models or min(batch, length, threads, vocab_size, most_turns) < 1:
        raise UserError("batch, length, threads, vocab_size, most_turns accept numbers from 1, models at least one")
    inputs = random_batch(batch, length, vocab_size)
    times: dict[str, list[float]] = {name: [] for name in models}
    models = {
        name: first_token_form(model) if isinstance(model, nn.Module) else model for name, model in models.items()
    }
    with _threads(threads), torch.inference_mode():
        end = time.perf_counter() + seconds * len(models)
        for turn in range(max(2, most_turns)):
            if turn >= 2 and time.perf_counter() >= end:
                break
            for name, model in models.items():
                times[name] += _turn(model, inputs)
    return [_summary(name, batch, length, threads, times[name]) for name in models]


def forward_times(models: Sequence[nn.Module], batch: int, length: int) -> list[float]:
    """Median milliseconds of each classifier's forward pass in PyTorch on the CPU; the models take turns."""

    def runner(model: nn.Module) -> Runner:
        form = first_token_form(model).eval()
        return lambda ids, mask, _: form(input_ids=ids, attention_mask=mask)

    runners = {str(place): runner(model) for place, model in enumerate(models)}
    words, threads = min(model.config.vocab_size for model in models), torch.get_num_threads()
    rows = measure(runners, batch, length, threads, words, seconds_of_each(len(models)))
    return [row.median_ms for row in rows]


def seconds_of_each(models: int) -> float:
    """Seconds to time each of this number of models for."""
    return max(_SECONDS_OF_EACH, _SECONDS_TOGETHER / models)


def on_cpu(model: nn.Module) -> nn.Module:
    """The model, or a copy of it if it is on another device."""
    return model if next(model.parameters()).device.type == "cpu" else copy.deepcopy(model).cpu()


def random_batch(batch: int, length: int, vocab_size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Token numbers without padding: input_ids, attention_mask, token_type_ids, each (batch, length) int64."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab_size, (batch, length), generator=generator)
    return ids, torch.ones_like(ids), torch.zeros_like(ids)


def speedups(rows: Iterable[Latency], baseline: str = "dense") -> dict[tuple[str, int, int, int], float]:
    """(model, batch, length, threads) -> how many times as fast as the baseline at the same shape, by the medians.

    Shapes without the baseline are left out.
    """
    rows = list(rows)
    of_baseline = {(r.batch, r.length, r.threads): r.median_ms for r in rows if r.model == baseline}
    return {
        (r.model, r.batch, r.length, r.threads): of_baseline[r.batch, r.length, r.threads] / r.median_ms
        for r in rows
        if (r.batch, r.length, r.threads) in of_baseline
    }


def machine() -> dict[str, Any]:
    """Things that latencies depend on: processor, number of cores, versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _turn(model: Runner, inputs: tuple[Tensor, Tensor, Tensor]) -> list[float]:
    end = time.perf_counter() + _PAUSE_SECONDS
    while time.perf_counter() < end:
        pass
    model(*inputs)
    times = []
    for _ in range(_CALLS_PER_TURN):
        begin = time.perf_counter()
        model(*inputs)
        times.append(time.perf_counter() - begin)
    return times


def _summary(name: str, batch: int, length: int, threads: int, seconds: list[float]) -> Latency:
    low, median, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Latency(name, batch, length, threads, 1e3 * median, 1e3 * low, 1e3 * high, len(seconds))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
