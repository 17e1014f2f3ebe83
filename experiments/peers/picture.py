"""Metric over time, on a logarithmic scale: a panel for each task, a line for each way to get a smaller model.

python -m experiments.peers.picture mrpc.json sst-2.json --into peers.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

FAMILIES = {"first-": "first layers, trained", "cut-": "heads and neurons, no training", "ours-": "the same, trained"}
PRETRAINED = "minilm-l3"
ENGINE, SHAPE = "torch", "1 x 128"


def main() -> None:
    """Draw the tables that `experiments.peers.table` has written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("tables", type=Path, nargs="+", help="JSON files, one for each task")
    parser.add_argument("--into", type=Path, required=True, help="picture to write")
    args = parser.parse_args()
    columns = min(len(args.tables), 2)
    rows = -(-len(args.tables) // columns)
    figure = Figure(figsize=(5.5 * columns, 4 * rows), layout="constrained")
    for axes, path in zip(figure.subplots(rows, columns, squeeze=False).flat, args.tables, strict=False):
        draw(axes, path.stem, json.loads(path.read_text())["rows"])
    figure.savefig(args.into, dpi=120)


def draw(axes: Axes, task: str, rows: dict[str, dict]) -> None:
    """One task: the dense model and the bag of words as horizontal lines, the families as curves."""
    axes.plot(*point(rows["dense"]), "k*", markersize=11, label="dense")
    if PRETRAINED in rows:
        axes.plot(*point(rows[PRETRAINED]), "rD", label="pretrained with 3 layers")
    axes.axhline(100 * rows["bag of words"]["accuracy"][ENGINE], color="0.6", linestyle=":", label="bag of words")
    for (prefix, label), marker in zip(FAMILIES.items(), "sov", strict=True):
        points = sorted(point(row) for name, row in rows.items() if name.startswith(prefix))
        axes.plot(*zip(*points, strict=True), marker=marker, label=label)
    axes.set(xscale="log", title=task, xlabel=f"milliseconds ({ENGINE}, {SHAPE})", ylabel="accuracy, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def point(row: dict) -> tuple[float, float]:
    """The point of a model."""
    return row["milliseconds"][f"{ENGINE}, {SHAPE}"], 100 * row["accuracy"][ENGINE]


if __name__ == "__main__":
    main()
