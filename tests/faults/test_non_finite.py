"""NaN and infinity, and what float16 does about them."""

from __future__ import annotations

from pathlib import Path

from faults import non_finite
from faults.kills import Uninterrupted
from faults.runs import World


def test_poisoned_runs(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    commands = [(world.trainer("movement"), 16), (world.distiller("distilbert"), 6)]
    tally = non_finite.try_all(commands, tmp_path, known, 8, seed=1)
    assert tally.lost == []
    assert tally.survived == 8


def test_a_last_update_that_makes_weights_infinite_is_not_saved(
    world: World, known: Uninterrupted, tmp_path: Path
) -> None:
    command = world.trainer("movement")
    assert non_finite.poisoned(command, "weight", float("inf"), 16, tmp_path, known, 16) is None


def test_float16_overflow_skips_rescales_and_is_counted(world: World, tmp_path: Path) -> None:
    assert non_finite.overflowing(tmp_path, world) is None
