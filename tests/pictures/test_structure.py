"""The picture of heads and neurons: what is drawn where, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from emmental.errors import UserError
from emmental.pictures.structure import heads_and_neurons

HEADS = np.array([[True, False, True], [False, False, False]])


def texts(chart) -> list[str]:
    return [text.get_text() for text in [*chart.texts, *(text for axes in chart.axes for text in axes.texts)]]


def test_every_layer_shows_its_heads_and_neurons():
    chart = heads_and_neurons(HEADS, [10, 40], 64, title="a run")
    assert texts(chart) == [
        "a run",
        "2 of 6 heads and 50 of 128 neurons stay",
        *("0", "1", "2", "0", "1", "2"),
        *("10 of 64", "40 of 64"),
    ]
    heads, neurons = chart.axes
    assert [label.get_text() for label in heads.get_yticklabels()] == ["layer 0", "layer 1"]
    colors = [patch.get_facecolor() for patch in heads.patches]
    stays = colors[0]
    assert [color == stays for color in colors] == HEADS.ravel().tolist()
    assert [round(patch.get_width(), 6) for patch in neurons.patches] == [64, 10, 64, 40]
    assert chart._get_buffer().shape[1] == 1200


def test_where_only_numbers_are_known_heads_have_no_names():
    chart = heads_and_neurons(([2, 0], 3), np.array([1, 0]), [2, 3])
    assert texts(chart)[-3:] == ["2 of 6 heads and 1 of 5 neurons stay", "1 of 2", "0 of 3"]
    colors = [patch.get_facecolor() for patch in chart.axes[0].patches]
    assert [color == colors[0] for color in colors] == [True, True, False, False, False, False]


def test_twice_gives_equal_bytes(tmp_path):
    files = [heads_and_neurons(HEADS, [10, 40], 64).save(tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([True, False], [1], 2), "heads: bool of shape"),
        (([[0, 2]], [1], 2), "heads: int64 of shape"),
        ((([4], 3), [1], 2), "heads: numbers of heads"),
        ((HEADS, [1], 2), "neurons: shape"),
        ((HEADS, [1, 3], 2), "neurons: layer 1 keeps 3 of 2"),
        ((HEADS, [1.5, 1], 2), "neurons: whole numbers"),
        ((HEADS, [-1, 1], 2), "neurons: whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(UserError, match=f"^{message}"):
        heads_and_neurons(*arguments)
