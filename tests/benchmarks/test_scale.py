"""The curves of cost: every point asked for, and data that ranks share."""

from __future__ import annotations

import pytest

from benchmarks import scale

NONE = ["--examples", "--lengths", "--layers", "--ranks"]
SMALL = ["--threads=1", "--hidden=64", "--updates=1", "--batch_size=2"]


def test_examples():
    results = scale.main([*NONE, "--examples", "10", "20", *SMALL])
    assert [row["lines"] for row in results["examples"]] == [10, 20]
    assert all(row["cold_seconds"] > 0 and row["warm_seconds"] > 0 for row in results["examples"])
    assert results["length"] == results["layers"] == results["ranks"] == []


def test_length_and_layers():
    results = scale.main([*NONE, "--lengths", "8", "--layers", "1", "2", *SMALL])
    assert [row["length"] for row in results["length"]] == [8]
    assert [row["layers"] for row in results["layers"]] == [1, 2]
    assert all(row["topK"]["median"] > 0 for row in (*results["length"], *results["layers"]))


@pytest.mark.slow
def test_two_ranks_share_the_data():
    results = scale.main([*NONE, "--ranks", "2", "--rank_lines", "20000", *SMALL])
    (point,) = results["ranks"]
    assert point["ranks"] == 2
    assert point["update_seconds"]["count"] == 2
    assert point["data_bytes"] > 1_500_000
    assert point["private_bytes_of_data"] < point["data_bytes"]
