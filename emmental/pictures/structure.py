"""Pictures of what structured pruning keeps of each layer: its attention heads and feed-forward neurons."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from emmental.errors import UserError
from emmental.pictures.canvas import Chart, picture_style
from emmental.pictures.heat import SMALL_FONT, TEXT_FONT, TITLE_FONT, WIDTH, axes_at, color_map, write
from emmental.pictures.inputs import to_array
from emmental.pictures.palette import text_color_on

_LEFT, _TOP, _RIGHT, _BOTTOM, _BETWEEN, _INDENT, _ROW = 110, 140, 40, 30, 60, 24, 40
_GONE = "#e6e6e6"


def heads_and_neurons(heads: object, neurons: object, of_neurons: object, title: str = "") -> Chart:
    """A row for each layer: its attention heads (those that stay are coloured) and a bar of the neurons that stay.

    Args:
        heads: (layers, heads) bool, True where the head stays. If only the numbers are known, as for a small
            model, the pair (numbers that stay, number before): (layers,) integers and one integer.
        neurons: (layers,) integers, neurons that stay.
        of_neurons: how many there were: one integer, or (layers,) integers.
        title: heading of the picture.

    Raises:
        UserError: arrays that do not fit together, or more neurons stay than there were.
    """
    kept, numbered = _heads(heads)
    neurons, before = _neurons(neurons, of_neurons, len(kept))
    layers, count = kept.shape
    width = (WIDTH - _LEFT - _BETWEEN - _RIGHT) // 2
    width_of_heads = max(width, 30 * count)
    height = _ROW * layers
    with picture_style():
        chart = Chart(_LEFT + width_of_heads + _BETWEEN + width + _RIGHT, _TOP + height + _BOTTOM)
        write(chart, _INDENT, 20, title, TITLE_FONT, weight="bold")
        write(chart, _INDENT, 62, _summary(kept, neurons, before), TEXT_FONT)
        left = axes_at(chart, (_LEFT, _TOP, width_of_heads, height))
        _draw_heads(left, kept, numbered, width_of_heads / count)
        right = axes_at(chart, (_LEFT + width_of_heads + _BETWEEN, _TOP, width, height))
        _draw_neurons(right, neurons, before)
        for axes, name in ((left, "attention heads"), (right, "feed-forward neurons")):
            axes.set_title(name, fontsize=TEXT_FONT, pad=10)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
        left.set_yticks(range(layers), [f"layer {i}" for i in range(layers)], fontsize=SMALL_FONT)
        right.set_yticks([])
    return chart


def _summary(kept: np.ndarray, neurons: np.ndarray, before: np.ndarray) -> str:
    return (
        f"{int(kept.sum()):,} of {kept.size:,} heads and {int(neurons.sum()):,} of {int(before.sum()):,} neurons stay"
    )


def _draw_heads(axes: Axes, kept: np.ndarray, numbered: bool, column: float) -> None:
    layers, count = kept.shape
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(layers - 0.5, -0.5)
    axes.set_xticks([])
    color = color_map()(0.45)
    for (layer, head), stays in np.ndenumerate(kept):
        axes.barh(layer, 0.86, left=head - 0.43, height=0.8, color=color if stays else _GONE)
        if numbered:
            ink = text_color_on(color) if stays else "#8c8c8c"
            font = min(SMALL_FONT, column / 2.2)
            axes.text(head, layer, str(head), ha="center", va="center", fontsize=font, color=ink)


def _draw_neurons(axes: Axes, neurons: np.ndarray, before: np.ndarray) -> None:
    most = max(1, int(before.max()))
    axes.set_xlim(0, most)
    axes.set_ylim(len(neurons) - 0.5, -0.5)
    axes.set_xticks([])
    color = color_map()(0.45)
    for layer, (stay, were) in enumerate(zip(neurons.tolist(), before.tolist(), strict=True)):
        axes.barh(layer, were, height=0.8, color=_GONE)
        axes.barh(layer, stay, height=0.8, color=color)
        inside = stay > 0.5 * most
        axes.text(
            stay + (-0.01 if inside else 0.01) * most,
            layer,
            f"{stay:,} of {were:,}",
            ha="right" if inside else "left",
            va="center",
            fontsize=SMALL_FONT,
            color=text_color_on(color) if inside else "black",
        )


def _heads(heads: object) -> tuple[np.ndarray, bool]:
    """(layers, heads) bool, and whether it is known which heads stay."""
    if isinstance(heads, tuple) and len(heads) == 2 and np.ndim(heads[1]) == 0:
        numbers, before = _whole(heads[0], "heads"), _whole([heads[1]], "heads")[0]
        if numbers.ndim != 1 or numbers.size == 0 or numbers.max() > before or before < 1:
            raise UserError(f"heads: numbers of heads that stay, each at most {before}, are accepted")
        return np.arange(before) < numbers[:, None], False
    kept = to_array(heads, "heads")
    if kept.ndim != 2 or kept.size == 0 or (kept.dtype.kind != "b" and not np.isin(kept, (0, 1)).all()):
        raise UserError(f"heads: {kept.dtype} of shape {kept.shape}; (layers, heads) of True and False is accepted")
    return kept.astype(bool), True


def _neurons(neurons: object, of_neurons: object, layers: int) -> tuple[np.ndarray, np.ndarray]:
    numbers = _whole(neurons, "neurons")
    before = _whole([of_neurons] * layers if np.ndim(of_neurons) == 0 else of_neurons, "of_neurons")
    if numbers.shape != (layers,) or before.shape != (layers,):
        raise UserError(f"neurons: shape {numbers.shape} of {before.shape} for {layers} layers")
    if (numbers > before).any():
        layer = int(np.argmax(numbers > before))
        raise UserError(f"neurons: layer {layer} keeps {numbers[layer]} of {before[layer]}")
    return numbers, before


def _whole(values: object, name: str) -> np.ndarray:
    array = to_array(values, name)
    if array.dtype.kind not in "ui" or (array.size and array.min() < 0):
        raise UserError(f"{name}: whole numbers from 0 are accepted")
    return array
