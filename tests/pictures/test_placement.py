"""Labels: first choices, the picture's edges, other labels, and text that must fit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emmental.pictures.placement import fit_text, place_label

PICTURE = (100.0, 80.0)
SIZE = (20.0, 10.0)


@pytest.mark.parametrize(
    ("box", "outside", "corner"),
    [
        ((10, 10, 70, 70), False, (10, 10)),
        ((10, 10, 30, 20), True, (10, 20)),  # below
        ((10, 60, 30, 75), True, (30, 60)),  # no room below: to the right
        ((90, 10, 99, 60), False, (80, 10)),  # pushed in from the right edge
        ((-30, -30, 50, 50), False, (0, 0)),  # the visible corner
    ],
)
def test_first_choice(box: tuple, outside: bool, corner: tuple) -> None:
    assert place_label(SIZE, box, PICTURE, [], outside) == (*corner, corner[0] + 20, corner[1] + 10)


def test_the_next_choice_avoids_a_label_that_stands() -> None:
    box = (10, 10, 70, 70)
    first = place_label(SIZE, box, PICTURE, [], False)
    second = place_label(SIZE, box, PICTURE, [first], False)
    third = place_label(SIZE, box, PICTURE, [first, second], False)
    assert (second[:2], third[:2]) == ((50, 10), (10, 60))


def test_touching_labels_do_not_overlap() -> None:
    assert place_label(SIZE, (10, 10, 70, 70), PICTURE, [(10, 0, 30, 10)], False)[:2] == (10, 10)


def test_a_full_picture_covers_least() -> None:
    taken = [(0.0, 0.0, 100.0, 60.0), (0.0, 60.0, 100.0, 80.0), (0.0, 60.0, 100.0, 80.0)]
    assert place_label(SIZE, (10, 10, 70, 70), PICTURE, taken, False)[1] <= 50


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(*[st.floats(-200, 200)] * 4),
    st.tuples(st.floats(1, 100), st.floats(1, 80)),
    st.booleans(),
    st.lists(st.tuples(st.floats(0, 60), st.floats(0, 60)), max_size=4),
)
def test_a_label_is_always_inside(box: tuple, size: tuple, outside: bool, others: list) -> None:
    box = (min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3]))
    x0, y0, x1, y1 = place_label(size, box, PICTURE, [(x, y, x + 9, y + 9) for x, y in others], outside)
    assert x0 >= 0
    assert y0 >= 0
    assert x1 <= PICTURE[0] + 1e-9
    assert y1 <= PICTURE[1] + 1e-9
    assert (x1 - x0, y1 - y0) == pytest.approx(size)


def measure(text: str, font_size: float) -> tuple[float, float]:
    """Every letter half as wide as high."""
    lines = text.split("\n")
    return max(len(line) for line in lines) * font_size / 2, len(lines) * font_size


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("four", (100, 100), ("four", 12.0)),
        ("four", (20, 100), ("four", 0.98 * 12 * 20 / 24)),
        ("eighteen letters..", (30, 100), ("eighteen…", 6.0)),
        ("two\nlines", (100, 11), ("two lines", 6.0)),
        ("tab\tand\x00zero", (500, 100), ("tab and zero", 12.0)),
        ("  ", (100, 100), None),
        ("", (100, 100), None),
        ("word", (2, 100), None),
        ("word", (100, 5), None),
    ],
)
def test_fit_text(text: str, room: tuple[float, float], expected: tuple[str, float] | None) -> None:
    fitted = fit_text(text, 12.0, room, measure)
    assert (None if fitted is None else (fitted[0], pytest.approx(fitted[1]))) == expected
    if fitted is not None:
        assert fitted[2] == measure(fitted[0], fitted[1])
        assert fitted[2][0] <= room[0]
        assert fitted[2][1] <= room[1]
