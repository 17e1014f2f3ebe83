"""The ground of a mask's picture: its tiles of density with axes, legend and title."""

from __future__ import annotations

import numpy as np

from emmental.pictures.canvas import Chart, picture_style
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
from emmental.pictures.masks import Block, density_tiles

_LEFT, _TOP, _RIGHT, _BOTTOM, _SIDE = 96, 104, 136, 76, 768
_MIN_BLOCK = 46  # pixels along a block's side, so that its label fits into it


def tiles_chart(mask: np.ndarray, name: str, block_count: int, axis: int) -> Chart:
    """Draw the tiles of a mask (out, in), outputs down and inputs across, stretched to a square.

    The side along `axis` grows where `block_count` labelled blocks need more room.
    """
    tiles, (tall, wide) = density_tiles(mask)
    # Single tiles stand out; the end of the scale lets one tile in two hundred be off it.
    end = scale_end(float(np.quantile(tiles, 0.995)) or float(tiles.max()))
    width, height = _sides(block_count, axis)
    with picture_style():
        chart = Chart(_LEFT + width + _RIGHT, _TOP + height + _BOTTOM)
        write(chart, 24, 18, name, TITLE_FONT, weight="bold")
        outputs, inputs = mask.shape
        tile = f", a tile is {tall} x {wide} weights" if tall * wide > 1 else ""
        share = f"{percent(float(mask.mean()))} % of {count_of(mask.size)} weights remain"
        write(chart, 24, 60, f"{outputs} x {inputs}: {share}{tile}", TEXT_FONT)
        axes = axes_at(chart, (_LEFT, _TOP, width, height))
        axes.imshow(
            tiles,
            cmap=color_map(),
            vmin=0.0,
            vmax=end,
            extent=(0, inputs, outputs, 0),
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_xlabel("input", fontsize=TEXT_FONT)
        axes.set_ylabel("output", fontsize=TEXT_FONT)
        axes.tick_params(labelsize=SMALL_FONT)
        draw_color_bar(chart, (_LEFT + width + 28, _TOP, 22, height), end, "remaining weights (%)")
    return chart


def block_boxes(blocks: list[Block], mask_shape: tuple[int, int], axis: int) -> np.ndarray:
    """Boxes (n, 4) of the blocks of a mask in pixels of the picture that `tiles_chart` draws."""
    width, height = _sides(len(blocks), axis)
    boxes = np.array([(_LEFT, _TOP, _LEFT + width, _TOP + height)] * len(blocks), dtype=np.float64)
    edge, origin, side = ((1, _TOP, height), (0, _LEFT, width))[axis]
    for box, block in zip(boxes, blocks, strict=True):
        box[edge] = origin + side * block.start / mask_shape[axis]
        box[edge + 2] = origin + side * block.stop / mask_shape[axis]
    return boxes


def _sides(block_count: int, axis: int) -> tuple[int, int]:  # (width, height) in pixels
    along = max(_SIDE, _MIN_BLOCK * block_count)
    return (_SIDE, along) if axis == 0 else (along, _SIDE)
