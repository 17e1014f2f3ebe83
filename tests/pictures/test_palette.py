"""Colours that belong to boxes, and text that can be read."""

from __future__ import annotations

import numpy as np
import pytest

from emmental.pictures.palette import BOX_COLORS, box_colors, luminance, on_dark, text_color_on


def boxes_of(count: int) -> np.ndarray:
    return np.array([[i, 2 * i, i + 10.0, 2 * i + 10] for i in range(count)])


def test_colours_differ_up_to_the_length_of_the_palette() -> None:
    count = len(BOX_COLORS)
    assert len(set(BOX_COLORS)) == count == 20
    assert len(set(box_colors(boxes_of(count), [""] * count))) == count
    more = box_colors(boxes_of(count + 5), [""] * (count + 5))
    assert len(set(more)) == count


def test_colours_follow_their_boxes() -> None:
    boxes, labels = boxes_of(9), [str(i) for i in range(9)]
    order = [4, 2, 8, 0, 1, 7, 6, 3, 5]
    colors = box_colors(boxes, labels)
    assert box_colors(boxes[order], [labels[i] for i in order]) == [colors[i] for i in order]


def test_equal_boxes_differ_by_their_labels_and_float32_is_float64() -> None:
    twice = np.repeat(boxes_of(1), 2, axis=0)
    first, second = box_colors(twice, ["a", "b"])
    assert first != second
    assert box_colors(twice, ["b", "a"]) == [second, first]
    tenths = boxes_of(5) + 0.1
    assert box_colors(tenths.astype(np.float32).astype(np.float64), [""] * 5) == box_colors(tenths, [""] * 5)
    assert box_colors(np.array([[-0.0, 0, 1, 1]]), [""]) == box_colors(np.array([[0.0, 0, 1, 1]]), [""])


def test_no_boxes_no_colours() -> None:
    assert box_colors(np.empty((0, 4)), []) == []


@pytest.mark.parametrize(("color", "expected"), [("black", 0.0), ("white", 1.0), ("red", 0.2126), ("lime", 0.7152)])
def test_luminance(color: str, expected: float) -> None:
    assert luminance(color) == pytest.approx(expected)


@pytest.mark.parametrize("color", ["black", "blue", "red", "white", *BOX_COLORS])
def test_text_can_be_read_on_a_dark_plate(color: object) -> None:
    # Contrast by WCAG 2.1 against black is (L + 0.05) / 0.05; 7 is its strictest level.
    assert (luminance(on_dark(color)) + 0.05) / 0.05 >= 7


@pytest.mark.parametrize("color", ["black", "white", "yellow", "navy", "#777777", "#7a7a7a"])
def test_text_can_be_read_on_a_cell(color: str) -> None:
    low, high = sorted((luminance(color), luminance(text_color_on(color))))
    assert (high + 0.05) / (low + 0.05) >= 4.5
