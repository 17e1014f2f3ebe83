"""The same weights whatever is switched beside the updates."""

from __future__ import annotations

from pathlib import Path

from faults import determinism
from faults.runs import World


def test_the_trainer(world: World, tmp_path: Path) -> None:
    tally = determinism.try_all(world.trainer("movement"), determinism.SWITCHES, tmp_path)
    assert tally.lost == []
    assert tally.survived == len(determinism.SWITCHES)


def test_another_seed_is_another_model(world: World, tmp_path: Path) -> None:
    """The harness itself."""
    tally = determinism.try_all(world.trainer("movement"), {"another seed": ("--seed", "7")}, tmp_path)
    assert tally.lost == ["another seed: other weights"]
