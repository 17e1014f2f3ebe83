"""The same weights whatever is switched beside the updates."""

from __future__ import annotations

from pathlib import Path

from faults import determinism
from faults.runs import World

IN_SHORT = ("the same again", "logging every update", "no evaluation", "pictures", "two processes load batches")


def test_the_trainer(world: World, tmp_path: Path) -> None:
    switches = {name: determinism.SWITCHES[name] for name in IN_SHORT}
    tally = determinism.try_all(world.trainer("movement"), switches, tmp_path)
    assert tally.lost == []
    assert tally.survived == len(IN_SHORT)


def test_a_teacher_is_asked_in_the_same_batches(world: World, tmp_path: Path) -> None:
    switches = {name: determinism.SWITCHES[name] for name in ("another evaluation batch size",)}
    assert determinism.try_all(world.trainer("taught"), switches, tmp_path).lost == []


def test_another_seed_is_another_model(world: World, tmp_path: Path) -> None:
    """The harness itself."""
    tally = determinism.try_all(world.trainer("movement"), {"another seed": ("--seed", "7")}, tmp_path)
    assert tally.lost == ["another seed: other weights"]
