"""Shared by the measurements: quartiles of repeated timings, the table on the screen, the JSON file."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from emmental.atomic import write_json
from emmental.latency import machine


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing: median and quartiles, in the unit of the values.

    Attributes:
        median, low, high: half, a quarter and three quarters of the values lie below.
        count: number of values.
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def text(self, scale: float = 1.0, digits: int = 3) -> str:
        """`median (low-high)`, the values multiplied by `scale`."""
        numbers = [f"{scale * value:.{digits}f}" for value in (self.median, self.low, self.high)]
        return f"{numbers[0]} ({numbers[1]}-{numbers[2]})"


def timed(function: Callable[[], Any], repeats: int, warmup: int = 1) -> Spread:
    """Seconds of a call, after `warmup` untimed calls."""
    for _ in range(warmup):
        function()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return Spread.of(seconds)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first to the left and the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [
        [cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zipped)]
        for zipped in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (aligned[0], rule, *aligned[1:]))


def report(args: argparse.Namespace, results: dict[str, Any], *tables: str) -> dict[str, Any]:
    """Print the tables, write the numbers with the machine they come from, and return them."""
    results = {"machine": machine() | {"threads": args.threads, "device": device_name(args)}, **results}
    print("\n\n".join(tables))
    if args.json is not None:
        write_json(args.json, plain(results))
    return plain(results)


def device_name(args: argparse.Namespace) -> str:
    """The device of the measurement: `cpu`, or the GPU's name."""
    device = torch.device(getattr(args, "device", "cpu"))
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def plain(value: Any) -> Any:
    """The value with spreads as dictionaries and paths as text, for JSON."""
    if isinstance(value, Spread):
        return asdict(value)
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
