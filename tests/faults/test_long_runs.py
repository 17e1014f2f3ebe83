"""Memory, open files and disk of a run of some hundred updates."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import long_runs
from faults.runs import World


@pytest.mark.parametrize("number", [0, 1], ids=["trainer", "distiller"])
def test_nothing_grows(world: World, number: int, tmp_path: Path) -> None:
    command = long_runs.commands(world, 180, 30)[number]
    uses = long_runs.watched(command, tmp_path / "out", 30)
    assert len(uses) == 6
    # So few updates do not tell a leak of memory from warming up: that is for the long form.
    assert [problem for problem in long_runs.problems(uses, keep=2) if "memory" not in problem] == []
    assert uses[-1]["memory"] < 1.1 * uses[2]["memory"]


def test_what_grows_is_found() -> None:
    """The harness itself."""
    flat = {"memory": 1000, "files": 9, "checkpoints": 3, "checkpoint_bytes": 1, "update": 1}
    assert long_runs.problems([flat] * 10, keep=2) == []
    grown = {**flat, "memory": 1011, "files": 10, "checkpoints": 4, "update": 2}
    found = long_runs.problems([flat] * 9 + [grown], keep=2)
    assert [problem.split()[0] for problem in found] == ["memory", "open", "there"]
