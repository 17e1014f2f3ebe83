"""The ground of a mask's picture."""

from __future__ import annotations

import numpy as np

from emmental.pictures.canvas import Chart
from emmental.pictures.densities import blocks
from emmental.pictures.tiles import block_boxes, tiles_ground, write_heading


def test_tiles_are_stretched_to_a_square() -> None:
    mask = np.zeros((2, 4), dtype=bool)
    mask[1, 3] = True
    ground = tiles_ground(mask, 2, 0)
    inside = ground[104 : 104 + 768, 96 : 96 + 768]
    yellow = (inside == [253, 231, 36]).all(axis=2)
    assert yellow[384:, 576:].all()
    assert yellow.sum() == 384 * 192
    assert (inside[~yellow] == [68, 1, 84]).all()


def test_boxes_lie_on_the_blocks() -> None:
    mask = np.ones((4, 8), dtype=bool)
    assert block_boxes(blocks(mask, 2, 0), mask.shape, 0).tolist() == [[96, 104, 864, 488], [96, 488, 864, 872]]
    assert block_boxes(blocks(mask, 2, 1), mask.shape, 1).tolist() == [[96, 104, 480, 872], [480, 104, 864, 872]]


def test_pictures_do_not_share_their_ground() -> None:
    full, empty = np.ones((4, 4), dtype=bool), np.zeros((4, 4), dtype=bool)
    before = tiles_ground(full, 1, 0)
    copy = before.copy()
    before[:] = 0
    assert (tiles_ground(empty, 1, 0)[200, 200] == [68, 1, 84]).all()
    assert np.array_equal(tiles_ground(full, 1, 0), copy)


def test_heading_says_what_remains() -> None:
    mask = np.zeros((512, 1024), dtype=bool)
    mask[:128] = True
    chart = Chart(1000, 948)
    write_heading(chart, "name", mask)
    assert [text.get_text() for text in chart.texts] == [
        "name",
        "512 x 1024: 25.0 % of 524 k weights remain, a tile is 2 x 4 weights",
    ]
