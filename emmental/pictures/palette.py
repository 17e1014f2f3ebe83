"""Colours of boxes, of lines, and of text on a coloured background."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb

# The seven hues of Okabe and Ito (2008): people with any colour vision can tell them apart.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
BOX_COLORS = tuple(
    to_rgb(name)
    for name in (
        *LINE_COLORS,
        *("#EE3377", "#33BBEE", "#AAE03A", "#FF4500", "#9B5DE5", "#00F5D4", "#FFB3C6", "#B5651D", "#6EFF6E"),
        *("#4361EE", "#FFD60A", "#C1121F", "#B8C0FF"),
    )
)


def box_colors(boxes: np.ndarray, labels: Sequence[str]) -> list[tuple[float, float, float]]:
    """One colour for each box. It depends on the box, not on the order of the boxes.

    A box's coordinates choose its place in `BOX_COLORS`. If two boxes choose the same place, one of them takes
    the next free one. So up to `len(BOX_COLORS)` boxes get different colours.

    Args:
        boxes: (n, 4) float, x0 y0 x1 y1.
        labels: n texts, which tell boxes with equal coordinates apart.
    """
    colors: list[tuple[float, float, float]] = [BOX_COLORS[0]] * len(boxes)
    taken: set[int] = set()
    for i in sorted(range(len(boxes)), key=lambda i: (*boxes[i], labels[i])):
        # Hundredths of a pixel: float16, float32 and float64 boxes agree. Adding 0 makes -0.0 the same as 0.0.
        key = (np.round(boxes[i], 2) + 0.0).astype("<f8").tobytes()
        slot = zlib.crc32(key) % len(BOX_COLORS)
        if len(taken) == len(BOX_COLORS):
            taken.clear()
        while slot in taken:
            slot = (slot + 1) % len(BOX_COLORS)
        taken.add(slot)
        colors[i] = BOX_COLORS[slot]
    return colors


def luminance(color: object) -> float:
    """Relative luminance of a colour in [0, 1] (WCAG 2.1, section "relative luminance")."""
    rgb = np.asarray(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def on_dark(color: object) -> tuple[float, float, float]:
    """`color`, mixed with white until text in it can be read on a dark plate (a luminance of at least 0.5)."""
    rgb = np.asarray(to_rgb(color))
    for white in np.linspace(0, 1, 11):
        mixed = (1 - white) * rgb + white
        if luminance(mixed) >= 0.5:
            return tuple(mixed)
    return (1.0, 1.0, 1.0)


def text_color_on(color: object) -> str:
    """Black or white: the one with the higher contrast on `color`."""
    return "black" if luminance(color) > 0.179 else "white"
