"""Kill runs at random moments, start the same command again: the same bits come out."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from faults import kills, moments
from faults.kills import Uninterrupted
from faults.runs import World


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1])
def test_kills_at_random_moments(world: World, number: int, known: Uninterrupted, tmp_path: Path) -> None:
    tally = moments.at_random_moments(kills.all_commands(world), number, 5, known, tmp_path, seed=1)
    assert tally.lost == []
    assert tally.survived >= 5
