"""Two processes on gloo, and two runs on one folder."""

from __future__ import annotations

import signal
from pathlib import Path

from faults import processes
from faults.runs import World, last_lines


def test_a_killed_process_ends_all_within_a_minute(world: World, tmp_path: Path) -> None:
    assert processes.strands_nobody(world.trainer("movement"), tmp_path / "dies", "0,step,6,9") is None


def test_a_killed_process_is_restarted_by_torchrun_and_ends_exactly(world: World, tmp_path: Path) -> None:
    command = world.trainer("movement")
    status, said = processes.launch(command, tmp_path / "whole" / "out")
    assert status == 0, said
    whole = tmp_path / "whole" / "out"
    assert processes.restarted(command, tmp_path / "restarted", whole, "1,step,6,9") is None
    assert command.run(whole) == 2
    assert "world_size 2 -> 1" in last_lines(whole)


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(world: World, tmp_path: Path) -> None:
    """Its processes that load batches outlive it for some seconds: they do not hold the lock."""
    assert processes.second_run(world.trainer("movement"), tmp_path / "run", signal.SIGKILL) is None
