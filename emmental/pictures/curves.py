"""Remaining weights, threshold, loss and metrics over the updates of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from emmental.errors import UserError
from emmental.pictures.canvas import Chart, picture_style
from emmental.pictures.heat import SMALL_FONT, TEXT_FONT, TITLE_FONT, WIDTH, axes_at, write
from emmental.pictures.palette import LINE_COLORS

Line = tuple[list[float], list[float]]  # updates, values
_MARKERS = "osD^vPX*"
_REMAINING = "remaining\nweights (%)"
_ERRORS = ("rmse", "mae")
"""Metrics in the unit of the labels, which share no axis with the others."""
_PANEL, _GAP, _LEFT, _RIGHT, _TOP, _BOTTOM = 210, 34, 110, 190, 86, 76


def curves(history: Sequence[Mapping[str, object]], title: str = "") -> Chart:
    """Draw a panel each for remaining weights, threshold, loss and metrics, if the history has them.

    Args:
        history: rows such as {"step": 50, "threshold": 0.9, "remaining": 95.2, "loss": 0.4, "eval": {"acc": 0.8}}:
            `step` is the number of updates made, `remaining` is in percent; all but `step` may be absent or None.
            Other keys are ignored. If rows have the same step, as after a resume, the last value is used.
        title: heading of the picture.

    Raises:
        UserError: a row without `step`, a value that is not a number, or nothing to draw.
    """
    panels = _panels(history)
    if not panels:
        raise UserError("history: no row has remaining, threshold, loss or eval")
    with picture_style():
        chart = Chart(WIDTH, _TOP + len(panels) * (_PANEL + _GAP) - _GAP + _BOTTOM)
        write(chart, 24, 20, title, TITLE_FONT, weight="bold")
        first: Axes | None = None
        for i, (label, lines) in enumerate(panels.items()):
            axes = axes_at(chart, (_LEFT, _TOP + i * (_PANEL + _GAP), WIDTH - _LEFT - _RIGHT, _PANEL))
            if first is not None:
                axes.sharex(first)
            first = first or axes
            _draw_panel(axes, label, lines, last=i == len(panels) - 1)
    return chart


def has_curves(history: Sequence[Mapping[str, object]]) -> bool:
    """Whether `curves` has anything to draw. It raises UserError as `curves` does."""
    return bool(_panels(history))


def _panels(history: Sequence[Mapping[str, object]]) -> dict[str, dict[str, Line]]:
    """Heading of a panel -> name of a line -> its points. Empty lines and panels are left out."""
    panels: dict[str, dict[str, Line]] = {_REMAINING: {}, "threshold": {}, "loss": {}, "metrics": {}, "error": {}}
    names = {"remaining": _REMAINING, "threshold": "threshold", "loss": "loss"}
    for step, row in sorted(_by_step(history).items()):
        for key, panel in names.items():
            _append(panels[panel], "training loss" if key == "loss" else key, step, row.get(key))
        measured = row.get("eval") or {}
        if not isinstance(measured, Mapping):
            raise UserError(f"history: eval of step {step:g} is not a dict of metrics")
        for name, value in measured.items():
            panel = "loss" if "loss" in str(name) else "error" if name in _ERRORS else "metrics"
            _append(panels[panel], str(name), step, value)
    return {panel: lines for panel, lines in panels.items() if lines}


def _by_step(history: Sequence[Mapping[str, object]]) -> dict[float, Mapping[str, object]]:
    merged: dict[float, dict[str, object]] = {}
    for number, row in enumerate(history):
        step = row.get("step") if isinstance(row, Mapping) else None
        if isinstance(step, bool) or not isinstance(step, int | float) or not math.isfinite(step):
            raise UserError(f"history: row {number} has no number for step")
        merged.setdefault(step, {}).update(row)
    return merged


def _append(lines: dict[str, Line], name: str, step: float, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise UserError(f"history: {name} of step {step:g} is {value!r}, not a number")
    if math.isfinite(float(value)):
        updates, values = lines.setdefault(name, ([], []))
        updates.append(step)
        values.append(float(value))


def _draw_panel(axes: Axes, label: str, lines: dict[str, Line], last: bool) -> None:
    for i, (name, (updates, values)) in enumerate(lines.items()):
        # Markers tell lines apart without colour; lines with many points have none.
        marker = _MARKERS[i % len(_MARKERS)] if len(updates) <= 60 else None
        axes.plot(
            updates,
            values,
            color=LINE_COLORS[i % len(LINE_COLORS)],
            marker=marker,
            markersize=6,
            linewidth=2,
            label=f"{name}\nlast {values[-1]:.4g}",
        )
    axes.set_ylabel(label, fontsize=TEXT_FONT)
    axes.yaxis.set_label_coords(-0.07, 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.ticklabel_format(useOffset=False, style="plain")
    axes.tick_params(labelsize=SMALL_FONT, labelbottom=last)
    axes.grid(color="#dddddd", linewidth=1)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(y=0.1)
    if label == _REMAINING:
        axes.set(ylim=(0, 105), yticks=range(0, 101, 25))
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.0, 1.04),
        frameon=False,
        fontsize=SMALL_FONT if len(lines) <= 4 else SMALL_FONT * 4 / len(lines) + 2,
    )
    if last:
        axes.set_xlabel("updates", fontsize=TEXT_FONT)
