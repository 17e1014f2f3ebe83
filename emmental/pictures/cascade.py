"""Compares a cascade with the models that it is made of: what it costs, and what it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from emmental.errors import UserError
from emmental.pictures.canvas import Chart, picture_style
from emmental.pictures.heat import SMALL_FONT, TEXT_FONT, TITLE_FONT, WIDTH, axes_at, write
from emmental.pictures.ladder import finite_numbers
from emmental.pictures.palette import LINE_COLORS

_LEFT, _TOP, _RIGHT, _BOTTOM, _BETWEEN, _INDENT, _HEIGHT = 110, 110, 60, 80, 120, 24, 440


def cascade_picture(
    models: Sequence[str],
    model_ms: object,
    promises: Sequence[str],
    cascade_ms: object,
    panels: Mapping[str, tuple[object, object]],
    title: str = "",
) -> Chart:
    """A panel for each quantity: a point for each model, and a line through the cascade's promises.

    Args:
        models: names, written beside their points.
        model_ms: (models,) mean milliseconds of each.
        promises: what each point of the cascade's line promises; the first and the last are written.
        cascade_ms: (promises,) mean milliseconds of the cascade.
        panels: name of a quantity -> its values for (models, promises).
        title: heading of the picture.

    Raises:
        UserError: not one or two panels, or not one finite number for each model and promise; milliseconds above 0.
    """
    if not 1 <= len(panels) <= 2:
        raise UserError(f"panels: one or two are accepted, not {len(panels)}")
    times = [
        finite_numbers(model_ms, "model_ms", len(models)),
        finite_numbers(cascade_ms, "cascade_ms", len(promises)),
    ]
    if min(map(np.min, times)) <= 0:
        raise UserError("model_ms, cascade_ms: milliseconds above 0 are accepted")
    width = (WIDTH - _LEFT - _BETWEEN - _RIGHT) // 2
    with picture_style():
        chart = Chart(WIDTH, _TOP + _HEIGHT + _BOTTOM)
        write(chart, _INDENT, 20, title, TITLE_FONT, weight="bold")
        for number, (label, (alone, joined)) in enumerate(panels.items()):
            axes = axes_at(chart, (_LEFT + number * (width + _BETWEEN), _TOP, width, _HEIGHT))
            values = finite_numbers(alone, label, len(models)), finite_numbers(joined, label, len(promises))
            _draw(axes, times, values, models, promises)
            axes.set_ylabel(label, fontsize=TEXT_FONT)
    return chart


def _draw(
    axes: Axes,
    times: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    models: Sequence[str],
    promises: Sequence[str],
) -> None:
    axes.plot(times[0], values[0], color=LINE_COLORS[1], marker="s", markersize=8, linewidth=0)
    axes.plot(times[1], values[1], color=LINE_COLORS[0], marker="o", markersize=8, linewidth=2)
    ends = {0: promises[0], len(promises) - 1: promises[-1]} if promises else {}
    marked = [(models[place], times[0][place], values[0][place], 10) for place in range(len(models))]
    marked += [(f"cascade, {name}", times[1][place], values[1][place], -20) for place, name in ends.items()]
    for name, x, y, up in marked:
        axes.annotate(
            name, (x, y), xytext=(0, up), textcoords="offset points", ha="center", fontsize=SMALL_FONT, clip_on=False
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("mean milliseconds of a text", fontsize=TEXT_FONT)
    axes.tick_params(labelsize=SMALL_FONT)
    axes.grid(color="#dddddd", linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.2, y=0.15)
