"""The course of a run: which panels and lines a history gives."""

from __future__ import annotations

import numpy as np
import pytest

from emmental.pictures.curves import curves, has_curves

HISTORY = [
    {"step": 5, "threshold": 0.9, "remaining": 90.0, "loss": 0.7, "epoch": 0},
    {"step": 10, "threshold": 0.5, "remaining": 50.0, "loss": 0.5, "losses": {"ce": 0.5}},
    {"step": 10, "eval": {"acc": 0.75, "f1": 0.8, "eval_loss": 0.6}},
]


def lines(chart: object) -> dict[str, tuple[list[float], list[float]]]:
    found = [line for axes in chart.axes for line in axes.lines]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in found}


def test_panels_and_lines() -> None:
    chart = curves(HISTORY, "a run")
    assert [axes.get_ylabel() for axes in chart.axes] == ["remaining\nweights (%)", "threshold", "loss", "metrics"]
    assert lines(chart) == {
        "remaining\nlast 50": ([5, 10], [90.0, 50.0]),
        "threshold\nlast 0.5": ([5, 10], [0.9, 0.5]),
        "training loss\nlast 0.5": ([5, 10], [0.7, 0.5]),
        "eval_loss\nlast 0.6": ([10], [0.6]),
        "acc\nlast 0.75": ([10], [0.75]),
        "f1\nlast 0.8": ([10], [0.8]),
    }
    assert chart.axes[-1].get_xlabel() == "updates"
    assert list(chart.axes[0].get_yticks()) == [0, 25, 50, 75, 100]


def test_rows_out_of_order_and_repeated_steps() -> None:
    history = [{"step": 3, "loss": 1.0}, {"step": 1, "loss": 2.0}, {"step": 3, "loss": 0.5}]
    assert list(lines(curves(history)).values()) == [([1, 3], [2.0, 0.5])]


def test_numpy_numbers_and_gaps() -> None:
    history = [{"step": 1, "loss": np.float32(0.5)}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": None}]
    assert list(lines(curves(history)).values()) == [([1], [0.5])]


@pytest.mark.parametrize(("panels", "row"), [(1, {"loss": 1}), (2, {"loss": 1, "threshold": 2}), (4, {})])
def test_size_and_equal_bytes(panels: int, row: dict) -> None:
    history = [{"step": 1, **row}] if row else HISTORY
    first, second = curves(history, "t"), curves(history, "t")
    assert first._get_buffer().shape == (86 + panels * 244 - 34 + 76, 1200, 3)
    assert first._repr_png_() == second._repr_png_()


def test_ten_thousand_updates_and_many_metrics() -> None:
    history = [{"step": i, "loss": 1 / (i + 1)} for i in range(10_000)]
    history.append({"step": 10_000, "eval": {f"metric {i}": i / 12 for i in range(12)}})
    chart = curves(history, "t")
    assert len(lines(chart)) == 13
    assert chart.axes[0].lines[0].get_marker() == "None"
    assert (chart._get_buffer()[:, -3:] == 255).all()


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([], "no row has"),
        ([{"step": 1}], "no row has"),
        ([{"loss": 1.0}], "row 0 has no number for step"),
        ([{"step": 1, "loss": 1.0}, {"step": "2"}], "row 1 has no number"),
        ([{"step": True}], "row 0 has no number"),
        ([{"step": float("nan")}], "row 0 has no number"),
        (["row"], "row 0 has no number"),
        ([{"step": 1, "loss": "low"}], "training loss of step 1 is 'low', not a number"),
        ([{"step": 1, "eval": [0.5]}], "eval of step 1 is not a dict"),
        ([{"step": 1, "eval": {"acc": [1]}}], "acc of step 1 is"),
    ],
)
def test_mistakes(history: list, message: str) -> None:
    with pytest.raises(ValueError, match=f"^history: {message}"):
        curves(history)


def test_has_curves() -> None:
    assert has_curves(HISTORY)
    assert not has_curves([])
    assert not has_curves([{"step": 1, "eval": {}}])
