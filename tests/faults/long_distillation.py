"""The long run of the distiller."""

from __future__ import annotations

from pathlib import Path

from faults.long_runs import commands, ten_thousand
from faults.runs import World
from faults.tally import Tally


def long_form(folder: Path, seed: int = 0) -> list[Tally]:
    """10,000 updates."""
    return [ten_thousand(commands(World(folder / "world"), 9_999, 250)[1], folder)]
