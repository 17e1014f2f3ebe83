"""The measurement on a shared machine, at a tiny size."""

from __future__ import annotations

import pytest

from benchmarks import shared_machine
from emmental.runs.threads import SPIN_COUNT


def test_every_setting_has_its_turns_beside_each_number_of_neighbours():
    flags = ["--layers=1", "--hidden=32", "--batch=2", "--length=8", "--updates=2", "--rounds=1", "--threads=1"]
    results = shared_machine.main([*flags, "--neighbours", "0", "1", "--settings", "one thread"])
    assert results["ours"] == f"{int(SPIN_COUNT):,} turns"
    assert list(results["seconds"]) == ["0", "1"]
    for spread in results["seconds"].values():
        assert spread["one thread"]["count"] == 2
        assert spread["one thread"]["median"] > 0


def test_a_negative_number_of_neighbours_is_refused(capsys):
    with pytest.raises(SystemExit):
        shared_machine.main(["--neighbours", "-1"])
    assert "--neighbours accepts numbers from 0" in capsys.readouterr().err
