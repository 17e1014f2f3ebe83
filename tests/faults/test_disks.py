"""Let the disk fail, start the same command again: the same bits come out."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import disks
from faults.injection import FAILURES, LACKS
from faults.kills import Uninterrupted, all_commands
from faults.runs import World


@pytest.fixture(scope="module")
def commands(world: World) -> list:
    return all_commands(world)


@pytest.mark.parametrize("kind", FAILURES)
def test_failing_calls(commands: list, kind: str, known: Uninterrupted, tmp_path: Path) -> None:
    assert disks.failing_calls(commands, kind, 3, known, tmp_path, seed=1).lost == []


@pytest.mark.parametrize("kind", LACKS)
def test_what_a_file_system_lacks(commands: list, kind: str, known: Uninterrupted, tmp_path: Path) -> None:
    assert disks.lacking(commands[::5], kind, known, tmp_path).lost == []


def test_files_that_may_not_grow(commands: list, known: Uninterrupted, tmp_path: Path) -> None:
    assert disks.limited_files(commands, 4, known, tmp_path, seed=1).lost == []
