"""Places labels: at their box, inside the picture and, if there is room, not over earlier labels.

All rectangles are (x0, y0, x1, y1) in pixels of the drawn picture, y downward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Rectangle = tuple[float, float, float, float]
_MAX_STEPS = 40
_SMALLEST_FONT = 6.0  # pixels


def fit_text(
    text: str,
    font_size: float,
    room: tuple[float, float],
    measure: Callable[[str, float], tuple[float, float]],
) -> tuple[str, float, tuple[float, float]] | None:
    """Make a label fit into a picture: first with a smaller font, then in one line, then cut with an ellipsis.

    Args:
        text: one or more lines; unprintable characters become spaces.
        font_size: the size wanted, in pixels.
        room: (width, height) of the picture.
        measure: (text, font size) -> (width, height) of the label.

    Returns:
        (text, font size, label size), or None if there is no text or no room for one letter.
    """
    text = "\n".join("".join(c if c.isprintable() else " " for c in line) for line in str(text).splitlines()).strip()
    while text:
        size = measure(text, font_size)
        excess = max(size[0] / room[0], size[1] / room[1])
        if excess <= 1.0:
            return text, font_size, size
        if font_size > _SMALLEST_FONT:
            font_size = max(_SMALLEST_FONT, 0.98 * font_size / excess)
        elif "\n" in text:
            text = text.replace("\n", " ")
        else:
            kept = text.removesuffix("…")
            keep = min(len(kept) - 1, int(len(kept) / excess))
            text = kept[:keep].rstrip() + "…" if keep > 0 else ""
    return None


def place_label(
    size: tuple[float, float],
    box: Rectangle,
    picture: tuple[float, float],
    taken: Sequence[Rectangle],
    outside: bool,
) -> Rectangle:
    """Choose the place of a label.

    The first choice is the upper left corner inside the box. For a small box (`outside`) it is below the box, or to
    its right if the box ends at the lower edge. Next come the other corners and sides of the box, then places further
    down and up. If no place is free, the label goes where it covers least of other labels.

    Args:
        size: (width, height) of the label, at most that of the picture.
        box: the label's box; it may extend beyond the picture.
        picture: (width, height) of the picture.
        taken: the labels placed so far.
        outside: the box is too small to hold its label.

    Returns:
        The label's rectangle.
    """
    corners = np.array(_candidates(size, _visible(box, picture), picture, outside))
    corners = np.clip(corners, 0.0, np.subtract(picture, size))
    covered = _covered_area(corners, size, taken)
    x, y = corners[int(np.argmin(covered))]  # the first of the least covered
    return float(x), float(y), float(x + size[0]), float(y + size[1])


def _visible(box: Rectangle, picture: tuple[float, float]) -> Rectangle:
    x0, x1 = np.clip((box[0], box[2]), 0.0, picture[0])
    y0, y1 = np.clip((box[1], box[3]), 0.0, picture[1])
    return float(x0), float(y0), float(x1), float(y1)


def _candidates(
    size: tuple[float, float], box: Rectangle, picture: tuple[float, float], outside: bool
) -> list[tuple[float, float]]:
    (width, height), (x0, y0, x1, y1) = size, box
    within = [(x0, y0), (x1 - width, y0), (x0, y1 - height), (x1 - width, y1 - height)]
    below, right = (x0, y1), (x1, y0)
    around = [below, right, (x0, y0 - height), (x0 - width, y0), (x1, y1 - height), (x1 - width, y1)]
    if outside and y1 + height > picture[1]:
        around[:2] = [right, below]
    steps = range(1, _MAX_STEPS + 1)
    farther = [(x0, y0 + sign * step * height) for step in steps for sign in (1, -1)]
    return (around + within if outside else within + around) + farther


def _covered_area(
    corners: np.ndarray, size: tuple[float, float], taken: Sequence[Rectangle]
) -> np.ndarray:  # (candidates,) in square pixels
    if not taken:
        return np.zeros(len(corners))
    others = np.asarray(taken)  # (labels, 4)
    lower = np.maximum(corners[:, None, :], others[None, :, :2])
    upper = np.minimum(corners[:, None, :] + size, others[None, :, 2:])
    # A hundredth of a pixel is rounding, not an overlap.
    return np.clip(upper - lower - 0.01, 0.0, None).prod(axis=2).sum(axis=1)
