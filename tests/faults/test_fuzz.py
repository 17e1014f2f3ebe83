"""Mutated inputs for every reader, and for a reader that has a fault."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from faults import fuzz
from faults.fuzz import Reader

INPUTS = 60_000


def test_every_reader(tmp_path: Path) -> None:
    memory = Path("/dev/shm")  # a file for each input: a disk takes twenty times as long
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        tallies = list(fuzz.fuzz_all(Path(folder) / "inputs", INPUTS, seed=1))
    assert [line for tally in tallies for line in tally.lost] == []
    assert len(tallies) >= 20
    assert sum(tally.survived for tally in tallies) >= INPUTS


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (lambda content: json.loads(content)["a"], "KeyError"),
        (lambda content: content.decode("ascii") and None, ""),
    ],
)
def test_faults_of_readers_are_found(read, found) -> None:
    """The harness itself: an error that is not documented is told, a ValueError with one line is not."""
    tally = fuzz.fuzz(Reader("faulty", [b'{"a": 1, "b": 2}'], read, 1), 500, seed=0)
    assert any(found in line for line in tally.lost) if found else tally.lost == []
