"""Quartiles and tables by hand."""

from __future__ import annotations

from benchmarks.measurements import Spread, plain, table, timed


def test_quartiles_by_hand():
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_text_has_median_and_quartiles():
    assert Spread(0.5, 0.25, 1.0, 4).text(1e3, 0) == "500 (250-1000)"


def test_warm_up_calls_are_not_timed():
    calls = []
    assert timed(lambda: calls.append(1), repeats=3, warmup=2).count == 3
    assert len(calls) == 5


def test_table_aligns_the_first_column_left_and_numbers_right():
    lines = table(["name", "ms"], [["a", "1"], ["long name", "100"]]).splitlines()
    assert lines == [
        "| name      |  ms |",
        "| --------- | --: |",
        "| a         |   1 |",
        "| long name | 100 |",
    ]


def test_plain_numbers_for_json(tmp_path):
    nested = {"a": [Spread(1.0, 0.5, 2.0, 3)], 8: tmp_path}
    assert plain(nested) == {"a": [{"median": 1.0, "low": 0.5, "high": 2.0, "count": 3}], "8": str(tmp_path)}
