"""Files made to run code, to write elsewhere or to exhaust memory."""

from __future__ import annotations

from pathlib import Path

from faults import hostile


def test_hostile_files(tmp_path: Path) -> None:
    """Every third attack, another third of them than the long form's first."""
    attacks = hostile.ATTACKS[::3]
    tally = hostile.attack(attacks, tmp_path)
    assert tally.lost == []
    assert tally.survived == len(attacks) >= 20


def test_the_pickle_does_run_where_pickles_are_trusted(tmp_path: Path) -> None:
    """The harness itself: the canary tells of a program that unpickles."""
    import pickle

    canary = tmp_path / "canary"
    pickle.loads(hostile._pickle(canary))
    assert canary.exists()
