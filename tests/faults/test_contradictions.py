"""Flags that contradict each other."""

from __future__ import annotations

import pytest
from faults import contradictions
from faults.kills import Uninterrupted
from faults.runs import World


def test_the_grid(world: World, known: Uninterrupted) -> None:
    tallies = contradictions.try_all(world, known)
    assert [line for tally in tallies for line in tally.lost] == []
    assert sum(tally.survived for tally in tallies) >= 200


@pytest.mark.parametrize(
    "grid", [contradictions.TRAINER_FLAGS, contradictions.PLAIN, contradictions.DISTILLER_FLAGS, contradictions.TOOLS]
)
def test_no_line_stands_twice(grid: tuple) -> None:
    assert len(grid) == len({line[:-1] for line in grid})
