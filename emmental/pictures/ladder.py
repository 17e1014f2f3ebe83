"""Compares the models of one run: the metric against speed and against weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from emmental.errors import UserError
from emmental.pictures.canvas import Chart, picture_style
from emmental.pictures.heat import SMALL_FONT, TEXT_FONT, TITLE_FONT, WIDTH, axes_at, write
from emmental.pictures.inputs import to_array
from emmental.pictures.palette import LINE_COLORS

_LEFT, _TOP, _RIGHT, _BOTTOM, _BETWEEN, _INDENT, _HEIGHT = 110, 110, 60, 80, 100, 24, 440


def ladder(
    names: Sequence[str], metric: str, values: object, speeds: object, shares: object, title: str = ""
) -> Chart:
    """Two panels with a point for each model: the metric against speed, and against the encoder weights left.

    Args:
        names: of the models, written beside their points. The first is the model that the others were made from.
        metric: name of the metric in `values`.
        values: (models,) numbers.
        speeds: (models,) how many times as fast as the first.
        shares: (models,) encoder weights left, in % of the first model's.
        title: heading of the picture.

    Raises:
        UserError: no model, or not exactly one finite number for each.
    """
    columns = [finite_numbers(column, name, len(names)) for column, name in ((values, "values"), (speeds, "speeds"))]
    columns.append(finite_numbers(shares, "shares", len(names)))
    width = (WIDTH - _LEFT - _BETWEEN - _RIGHT) // 2
    with picture_style():
        chart = Chart(WIDTH, _TOP + _HEIGHT + _BOTTOM)
        write(chart, _INDENT, 20, title, TITLE_FONT, weight="bold")
        left = axes_at(chart, (_LEFT, _TOP, width, _HEIGHT))
        right = axes_at(chart, (_LEFT + width + _BETWEEN, _TOP, width, _HEIGHT))
        right.invert_xaxis()  # in both panels the cheapest model is on the right
        for axes, numbers, label in (
            (left, columns[1], "times as fast"),
            (right, columns[2], "encoder weights left (%)"),
        ):
            _draw(axes, names, numbers, columns[0], label)
        left.set_ylabel(metric, fontsize=TEXT_FONT)
    return chart


def _draw(axes: Axes, names: Sequence[str], across: np.ndarray, up: np.ndarray, label: str) -> None:
    axes.plot(across, up, color=LINE_COLORS[0], marker="o", markersize=8, linewidth=2)
    for name, x, y in zip(names, across, up, strict=True):
        axes.annotate(
            name, (x, y), xytext=(0, 10), textcoords="offset points", ha="center", fontsize=SMALL_FONT, clip_on=False
        )
    axes.set_xlabel(label, fontsize=TEXT_FONT)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.ticklabel_format(useOffset=False, style="plain")
    axes.tick_params(labelsize=SMALL_FONT)
    axes.grid(color="#dddddd", linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15, y=0.15)


def finite_numbers(values: object, name: str, count: int) -> np.ndarray:
    """(count,) float64.

    Raises:
        UserError: not exactly one finite number for each.
    """
    array = to_array(values, name)
    if array.shape != (count,) or not count or array.dtype.kind not in "uif" or not np.isfinite(array).all():
        raise UserError(f"{name}: a finite number for each of {count} models is accepted")
    return array.astype(float)
