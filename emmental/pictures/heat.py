"""Heat maps of remaining weights: a row for each layer, a column for each matrix, the number in each cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize

from emmental.errors import UserError
from emmental.pictures.canvas import Chart, picture_style
from emmental.pictures.densities import heading, table
from emmental.pictures.fonts import drawable
from emmental.pictures.inputs import to_array
from emmental.pictures.palette import text_color_on
from emmental.pictures.placement import fit_text

TITLE_FONT, TEXT_FONT, SMALL_FONT = 24, 17, 15  # pixels
WIDTH = 1200
_LEFT, _TOP, _RIGHT, _BOTTOM, _BETWEEN, _INDENT = 110, 164, 130, 40, 50, 24
_LETTER = 0.62  # width of a letter, on average, relative to its font size
_ROW, _TALL_ROW, _MIN_HEIGHT, _MIN_COLUMN = 40, 80, 240, 62
_SCALE_ENDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)


@dataclass(frozen=True)
class HeatTable:
    """Densities in [0, 1] (NaN: no such matrix) with the names of rows and columns.

    With `weights` > 0 the last row and the last column are "all", weighted by the matrices' sizes.
    """

    cells: np.ndarray
    rows: list[str]
    columns: list[str]
    weights: int = 0

    def summary(self) -> str:
        """For example "12.3 % of 85.0 M weights remain"; empty if the sizes are not known."""
        return f"{percent(self.cells[-1, -1])} % of {count_of(self.weights)} weights remain" if self.weights else ""


def percent(share: float) -> str:
    """A share in [0, 1] in percent, short enough for a cell: 100, 12.3, 3.45, 0.02."""
    value = 100.0 * share
    if value in (0.0, 100.0):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def count_of(number: int) -> str:
    """A number of weights in short form: 85.0 M, 590 k, 64."""
    if number >= 999_500:
        return f"{number / 1e6:.1f} M"
    return f"{number / 1e3:.0f} k" if number >= 1000 else str(number)


def scale_end(share: float) -> float:
    """The end of a colour scale that begins at 0: the first round number not below the largest share, at most 1."""
    return next((end for end in _SCALE_ENDS if share <= end), 1.0)


def color_map() -> Colormap:
    """Viridis, whose lightness rises evenly for every kind of colour vision; cells without a matrix are grey."""
    return colormaps["viridis"].with_extremes(bad="#d9d9d9")


def heat_table(
    densities: object,
    sizes: Mapping[object, int] | None = None,
    rows: Sequence[object] | None = None,
    columns: Sequence[object] | None = None,
) -> HeatTable:
    """Arrange densities in rows and columns.

    Args:
        densities: module name or (layer, matrix) -> share in [0, 1]; or an array (layers, matrices) of shares.
        sizes: number of weights under the same keys; adds the row and the column "all".
        rows: names for the rows of an array.
        columns: names for the columns of an array.

    Raises:
        UserError: no density, one outside [0, 1], or names or sizes that do not fit the densities.
    """
    if isinstance(densities, Mapping):
        if not densities:
            raise UserError("densities: empty; expected the density of at least one matrix")
        cells, layers, matrices = table(densities)
        shown = HeatTable(
            _checked(cells),
            [f"layer {layer}" if isinstance(layer, int) else str(layer) for layer in layers],
            [heading(matrix) for matrix in matrices],
        )
        return shown if sizes is None else _with_sums(shown, densities, sizes)
    cells = to_array(densities, "densities").astype(np.float64)
    if cells.ndim != 2 or cells.size == 0:
        raise UserError(f"densities: shape {cells.shape}; a dict, or an array (layers, matrices), is accepted")
    if sizes is not None:
        raise UserError("sizes: only densities in a dict have sizes")
    return HeatTable(
        _checked(cells),
        _names(rows, cells.shape[0], "rows", "layer"),
        _names(columns, cells.shape[1], "columns", "matrix"),
    )


def overview(
    densities: object,
    title: str,
    sizes: Mapping[object, int] | None = None,
    rows: Sequence[object] | None = None,
    columns: Sequence[object] | None = None,
) -> Chart:
    """Heat map of remaining weights: a row for each layer, a column for each matrix, the percentage in each cell.

    Args:
        densities: share of weights that remain, in [0, 1], under the module's name
            (`bert.encoder.layer.0.output.dense`) or under (layer, matrix); or an array (layers, matrices), with NaN
            where there is no matrix.
        title: heading of the picture.
        sizes: number of weights under the same keys; adds the row and column "all" and the total.
        rows: names of an array's rows.
        columns: names of an array's columns.

    Raises:
        UserError: nothing to draw, a density outside [0, 1], or names or sizes that do not fit.
    """
    shown = heat_table(densities, sizes, rows, columns)
    return heat_chart([shown], title, [shown.summary()])


def compare(
    first: object,
    second: object,
    names: Sequence[str] = ("before", "after"),
    title: str = "",
    first_sizes: Mapping[object, int] | None = None,
    second_sizes: Mapping[object, int] | None = None,
) -> Chart:
    """Two runs side by side on one colour scale. Arguments as for `overview`, once for each run.

    Raises:
        UserError: as `overview`, or not two names.
    """
    if len(names) != 2:
        raise UserError(f"names: {len(names)} names for two runs")
    tables: list[HeatTable] = [heat_table(first, first_sizes), heat_table(second, second_sizes)]
    subtitles = [f"{name}\n{shown.summary()}" for name, shown in zip(names, tables, strict=True)]
    return heat_chart(tables, title, subtitles)


def heat_chart(
    tables: Sequence[HeatTable], title: str, subtitles: Sequence[str], label: str = "remaining weights (%)"
) -> Chart:
    """One heat map, or several side by side on one colour scale."""
    columns = max(len(shown.columns) for shown in tables)
    count, margin = len(tables), max(_left_margin(shown) for shown in tables)
    column = max(_MIN_COLUMN, (WIDTH - count * margin - (count - 1) * _BETWEEN - _RIGHT) // (count * columns))
    tallest = max(len(shown.rows) for shown in tables)
    row = int(np.clip(_MIN_HEIGHT / tallest, _ROW, _TALL_ROW))
    width = count * (margin + columns * column) + (count - 1) * _BETWEEN + _RIGHT
    end = scale_end(max(float(np.nanmax(shown.cells, initial=0.0)) for shown in tables))
    with picture_style():
        chart = Chart(width, _TOP + row * tallest + _BOTTOM)
        write(chart, _INDENT, 20, title, TITLE_FONT, weight="bold")
        for i, (shown, subtitle) in enumerate(zip(tables, subtitles, strict=True)):
            left = margin + i * (margin + columns * column + _BETWEEN)
            size = (len(shown.columns) * column, row * len(shown.rows))
            place = (_INDENT, None) if count == 1 else (left, columns * column)
            write(chart, place[0], 62, subtitle, TEXT_FONT, room=place[1])
            _draw_cells(axes_at(chart, (left, _TOP, *size)), shown, end, column)
        draw_color_bar(chart, (width - _RIGHT + 30, _TOP, 22, row * tallest), end, label)
    return chart


def axes_at(chart: Chart, place: tuple[float, float, float, float]) -> Axes:
    """Axes at (left, top, width, height) in pixels from the upper left corner."""
    (left, top, width, height), (full_width, full_height) = place, chart.bbox.size
    return chart.add_axes(
        (left / full_width, 1 - (top + height) / full_height, width / full_width, height / full_height)
    )


def write(
    chart: Chart, left: float, top: float, text: str, size: float, weight: str = "normal", room: float | None = None
) -> None:
    """Write text with its upper left corner at (left, top) in pixels; text wider than `room` is made smaller or cut.

    Args:
        room: width in pixels; None: all of the chart to the right of `left`.
    """
    width, height = chart.bbox.size
    artist = chart.text(left / width, 1 - top / height, "", weight=weight, va="top", ha="left")

    def measure(text: str, font_size: float) -> tuple[float, float]:
        artist.set(fontsize=font_size, **drawable(text))
        extent = artist.get_window_extent(chart.canvas.get_renderer())
        return extent.width, extent.height

    if fit_text(text, size, (room or width - left - 10, height), measure) is None:
        artist.remove()


def draw_color_bar(chart: Chart, place: tuple[float, float, float, float], end: float, label: str) -> None:
    """The legend of a scale from 0 to `end` (a share), in percent, at (left, top, width, height) in pixels."""
    bar = chart.colorbar(ScalarMappable(Normalize(0.0, 100.0 * end), color_map()), cax=axes_at(chart, place))
    bar.set_label(label, fontsize=TEXT_FONT)
    bar.ax.tick_params(labelsize=SMALL_FONT)
    bar.outline.set_visible(False)


def _draw_cells(axes: Axes, shown: HeatTable, end: float, column: int) -> None:
    colors, scale = color_map(), Normalize(0.0, end)
    axes.imshow(shown.cells, cmap=colors, norm=scale, aspect="auto", interpolation="none")
    font = min(TEXT_FONT, column / 3.6)
    for (i, j), value in np.ndenumerate(shown.cells):
        color = text_color_on(colors(scale(value))) if np.isfinite(value) else "black"
        text = percent(value) if np.isfinite(value) else "–"
        axes.text(j, i, text, ha="center", va="center", fontsize=font, color=color)
    headings = [name if "\n" in name else name.replace(".", ".\n") for name in shown.columns]
    longest = max(len(line) for name in headings for line in name.splitlines() or [" "])
    axes.set_xticks(range(len(headings)), headings, fontsize=min(TEXT_FONT, max(9, column / (_LETTER * longest))))
    longest = max(len(name) for name in shown.rows)
    font = min(TEXT_FONT, (_left_margin(shown) - _INDENT) / (_LETTER * max(1, longest)))
    names = [drawable(name) for name in shown.rows]
    axes.set_yticks(range(len(names)), [name["text"] for name in names], fontsize=font)
    for name, label in zip(names, axes.get_yticklabels(), strict=True):
        label.set(**name)
    axes.tick_params(length=0, pad=8, top=False, bottom=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    for i in range(1, len(shown.rows)):
        axes.axhline(i - 0.5, color="white", linewidth=5 if shown.weights and i == len(shown.rows) - 1 else 1.5)
    for j in range(1, len(shown.columns)):
        axes.axvline(j - 0.5, color="white", linewidth=5 if shown.weights and j == len(shown.columns) - 1 else 1.5)


def _left_margin(shown: HeatTable) -> int:
    """Pixels for the names of the rows, at most 400; longer names get a smaller font."""
    return int(np.clip(_INDENT + _LETTER * TEXT_FONT * max(len(name) for name in shown.rows), _LEFT, 400))


def _with_sums(shown: HeatTable, densities: Mapping, sizes: Mapping[object, int]) -> HeatTable:
    if set(densities) != set(sizes):
        raise UserError("sizes: the keys must be those of densities")
    count = np.nan_to_num(table(sizes)[0])
    kept = np.nan_to_num(shown.cells) * count
    count, kept = (np.block([[a, a.sum(1, keepdims=True)], [a.sum(0), a.sum()]]) for a in (count, kept))
    cells = np.divide(kept, count, out=np.full_like(kept, np.nan), where=count > 0)
    return HeatTable(cells, [*shown.rows, "all"], [*shown.columns, "all"], int(count[-1, -1]))


def _checked(cells: np.ndarray) -> np.ndarray:
    known = cells[~np.isnan(cells)]
    if known.size and (known.min() < 0 or known.max() > 1):
        raise UserError(
            f"densities: from {known.min():g} to {known.max():g}; shares in [0, 1] are accepted, not percent"
        )
    return cells


def _names(names: Sequence[object] | None, count: int, argument: str, default: str) -> list[str]:
    if names is None:
        return [f"{default} {i}" for i in range(count)]
    if len(names) != count:
        raise UserError(f"{argument}: {len(names)} names for {count} {argument} of densities")
    return [str(name) for name in names]
