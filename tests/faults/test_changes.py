"""A changed command in the folder of a run."""

from __future__ import annotations

from pathlib import Path

from faults import changes
from faults.kills import Uninterrupted
from faults.runs import World


def test_the_trainer(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    names = ("another task", "other data", "another tokenizer", "another method", "another precision", "more epochs")
    chosen = {name: changes.TRAINER_CHANGES[name] for name in names}
    tally = changes.try_all(world.trainer("movement"), chosen, world, known, tmp_path)
    assert tally.lost == []
    assert tally.survived == len(names) + 1  # more epochs are accepted too


def test_the_distiller(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    tally = changes.try_all(world.distiller("distilbert"), changes.DISTILLER_CHANGES, world, known, tmp_path)
    assert tally.lost == []
    assert tally.survived == len(changes.DISTILLER_CHANGES) + 1
