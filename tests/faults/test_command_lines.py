"""The real command line, killed and started again."""

from __future__ import annotations

from pathlib import Path

from faults.command_lines import command_lines
from faults.kills import Uninterrupted
from faults.runs import World


def test_a_killed_process(world: World, known: Uninterrupted, tmp_path: Path) -> None:
    tally = command_lines([world.trainer("movement")], 1, known, tmp_path, seed=1)
    assert (tally.lost, tally.survived) == ([], 1)
