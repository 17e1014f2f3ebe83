"""The picture of a cascade beside its models: where the points lie, and what is refused."""

from __future__ import annotations

import pytest

from emmental.errors import UserError
from emmental.pictures.cascade import cascade_picture

NAMES, TIMES, PROMISES, JOINED = ["small", "dense"], [2, 10], ["1 %", "5 %"], [4, 1]
PANELS = {"answers changed (%)": ([3, 0], [0.5, 2]), "accuracy (%)": ([88, 90], [90, 89.5])}


def test_a_point_for_each_model_and_a_line_for_the_cascade():
    chart = cascade_picture(NAMES, TIMES, PROMISES, JOINED, PANELS, title="a cascade")
    assert len(chart.axes) == 2
    for axes, (label, values) in zip(chart.axes, PANELS.items(), strict=True):
        assert axes.get_ylabel() == label
        for line, across, up in zip(axes.lines, (TIMES, JOINED), values, strict=True):
            assert line.get_xydata().tolist() == [[x, y] for x, y in zip(across, up, strict=True)]
        assert [text.get_text() for text in axes.texts] == [*NAMES, "cascade, 1 %", "cascade, 5 %"]
        assert axes.get_xscale() == "log"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NAMES, TIMES, PROMISES, JOINED, {}), "panels: one or two"),
        ((NAMES, [0, 1], PROMISES, JOINED, PANELS), "model_ms, cascade_ms: milliseconds above 0"),
        ((NAMES, [1], PROMISES, JOINED, PANELS), "model_ms: "),
        ((NAMES, TIMES, PROMISES, JOINED, {"accuracy": ([1, float("nan")], [1, 2])}), "accuracy: "),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(UserError, match=f"^{message}"):
        cascade_picture(*arguments)
