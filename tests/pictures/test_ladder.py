"""The picture of several models of one run: where their points lie, and what is refused."""

from __future__ import annotations

import pytest

from emmental.errors import UserError
from emmental.pictures.ladder import ladder

NAMES, VALUES, SPEEDS, SHARES = ["dense", "50.0% kept", "10.0% kept"], [0.9, 0.89, 0.85], [1, 1.5, 4], [100, 50, 10]


def test_a_point_for_each_model_in_both_panels():
    chart = ladder(NAMES, "acc", VALUES, SPEEDS, SHARES, title="a run")
    assert [text.get_text() for text in chart.texts] == ["a run"]
    for axes, across in zip(chart.axes, (SPEEDS, SHARES), strict=True):
        (line,) = axes.lines
        assert line.get_xydata().tolist() == [[x, y] for x, y in zip(across, VALUES, strict=True)]
        assert [text.get_text() for text in axes.texts] == NAMES
    speed, share = chart.axes
    assert (speed.get_ylabel(), speed.get_xlabel(), share.get_xlabel()) == (
        "acc", "times as fast", "encoder weights left (%)",
    )  # fmt: skip
    assert share.xaxis_inverted()
    assert not speed.xaxis_inverted()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], "acc", [], [], []), "values: a finite number for each of 0 models"),
        ((NAMES, "acc", VALUES[:2], SPEEDS, SHARES), "values: a finite number for each of 3 models"),
        ((NAMES, "acc", VALUES, [1, 2, float("nan")], SHARES), "speeds: "),
        ((NAMES, "acc", VALUES, SPEEDS, ["a", "b", "c"]), "shares: "),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(UserError, match=f"^{message}"):
        ladder(*arguments)
