"""The background of a mask's picture: tiles coloured by density, axes, legend and heading."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from matplotlib.ticker import MaxNLocator

from emmental.pictures.canvas import Chart, picture_style
from emmental.pictures.densities import Block, density_tiles, tile_sides
from emmental.pictures.heat import (
    SMALL_FONT,
    TEXT_FONT,
    TITLE_FONT,
    axes_at,
    color_map,
    count_of,
    draw_color_bar,
    percent,
    scale_end,
    write,
)

_LEFT, _TOP, _RIGHT, _BOTTOM, _SIDE = 96, 104, 136, 76, 768
_MIN_BLOCK = 62  # pixels along a block's side, so that its label fits into it


def tiles_ground(mask: np.ndarray, block_count: int, axis: int) -> np.ndarray:
    """Draw the tiles of a mask (out, in): a row for outputs, a column for inputs, stretched to a square.

    The side along `axis` is longer if `block_count` labelled blocks need more room.

    Returns:
        (height, width, 3) uint8 RGB with room for a heading of two lines.
    """
    tiles = density_tiles(mask)
    # A few dense tiles must not stretch the scale: one tile in two hundred may be above its end.
    end = scale_end(float(np.quantile(tiles, 0.995)) or float(tiles.max()))
    width, height = _sides(block_count, axis)
    ground = _frame(mask.shape, (width, height), end).copy()
    colors = color_map()(tiles / end, bytes=True)[..., :3]
    ground[_TOP : _TOP + height, _LEFT : _LEFT + width] = cv2.resize(
        colors, (width, height), interpolation=cv2.INTER_NEAREST
    )
    return ground


def write_heading(chart: Chart, name: str, mask: np.ndarray) -> None:
    """Write above the tiles: the name of the matrix, and what remains of it."""
    tall, wide = tile_sides(mask.shape)
    tile = f", a tile is {tall} x {wide} weights" if tall * wide > 1 else ""
    share = f"{percent(float(mask.mean()))} % of {count_of(mask.size)} weights remain"
    write(chart, 24, 18, name, TITLE_FONT, weight="bold")
    write(chart, 24, 60, f"{mask.shape[0]} x {mask.shape[1]}: {share}{tile}", TEXT_FONT)


def block_boxes(blocks: list[Block], mask_shape: tuple[int, int], axis: int) -> np.ndarray:
    """Boxes (n, 4) of the blocks of a mask in pixels of the picture that `tiles_ground` draws."""
    width, height = _sides(len(blocks), axis)
    boxes = np.array([(_LEFT, _TOP, _LEFT + width, _TOP + height)] * len(blocks), dtype=np.float64)
    edge, origin, side = ((1, _TOP, height), (0, _LEFT, width))[axis]
    for box, block in zip(boxes, blocks, strict=True):
        box[edge] = origin + side * block.start / mask_shape[axis]
        box[edge + 2] = origin + side * block.stop / mask_shape[axis]
    return boxes


@lru_cache(maxsize=16)  # axes are slow to draw, and a model's matrices have few different shapes and scales
def _frame(shape: tuple[int, int], sides: tuple[int, int], end: float) -> np.ndarray:
    """Axes and legend around the tiles."""
    (outputs, inputs), (width, height) = shape, sides
    with picture_style():
        chart = Chart(_LEFT + width + _RIGHT, _TOP + height + _BOTTOM)
        axes = axes_at(chart, (_LEFT, _TOP, width, height))
        axes.set(xlim=(0, inputs), ylim=(outputs, 0))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("input", fontsize=TEXT_FONT)
        axes.set_ylabel("output", fontsize=TEXT_FONT)
        axes.tick_params(labelsize=SMALL_FONT)
        draw_color_bar(chart, (_LEFT + width + 28, _TOP, 22, height), end, "remaining weights (%)")
        return chart._get_buffer()


def _sides(block_count: int, axis: int) -> tuple[int, int]:  # (width, height) in pixels
    along = max(_SIDE, _MIN_BLOCK * block_count)
    return (_SIDE, along) if axis == 0 else (along, _SIDE)
