"""Exports and pictures are whole or absent."""

from __future__ import annotations

from pathlib import Path

from faults import exports
from faults.kills import Uninterrupted
from faults.runs import World


def test_exports_that_are_killed(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    model = known.of(world.trainer("movement"))[0]
    tally = exports.try_all(model, world, tmp_path, 14, seed=1)
    assert tally.lost == []
    assert tally.survived == 14
