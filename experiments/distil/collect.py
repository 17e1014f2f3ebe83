"""Loss curves of the students started from the teacher and at random: a picture, and the numbers in results.json."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from emmental import atomic
from emmental.runs.progress import read_log

RUNS = {"from-teacher": "started from the teacher's layers", "from-random": "started at random"}
LOSSES = {"total": "weighted sum", "ce": "KL to the teacher", "mlm": "masked LM", "cos": "cosine distance"}
COLORS = {"from-teacher": "#0072b2", "from-random": "#d55e00"}


def main() -> None:
    """Write `curves.png` and `results.json`, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--into", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    logs = {name: losses_of(args.runs / name) for name in RUNS}
    atomic.write_json(args.into / "results.json", summary(args.runs, logs))
    draw(logs, args.into / "curves.png")
    print(table(logs))


def losses_of(run: Path) -> list[dict[str, float]]:
    """Rows with the update and the mean of every loss since the row before."""
    return [{"step": row["step"], "total": row["loss"], **row["losses"]} for row in read_log(run / "train_log.jsonl")]


def summary(runs: Path, logs: dict[str, list[dict[str, float]]]) -> dict:
    """The record: both curves, the last losses of the teacher's own training, the corpus, and the machine."""
    corpus = json.loads((runs / "corpus" / "corpus.json").read_text())
    kept = ("lines", "sequences", "tokens", "too_short", "unknown", "split", "longest")
    return {
        "corpus": {name: corpus[name] for name in kept},
        "teacher": losses_of(runs / "teacher")[-1],
        "students": logs,
        "last_fifth": {name: last_fifth(rows) for name, rows in logs.items()},
        "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})",
    }


def last_fifth(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each loss over the last fifth of the log's rows."""
    end = rows[-max(1, len(rows) // 5) :]
    return {name: sum(row[name] for row in end) / len(end) for name in LOSSES}


def draw(logs: dict[str, list[dict[str, float]]], path: Path) -> None:
    """A panel for each loss, a line for each student."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (loss, title) in zip(figure.subplots(2, 2).flat, LOSSES.items(), strict=True):
        for name, rows in logs.items():
            axes.plot([row["step"] for row in rows], [row[loss] for row in rows], color=COLORS[name], label=RUNS[name])
        axes.set_title(title)
        axes.set_xlabel("updates")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    with atomic.atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def table(logs: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: the last fifth of both runs."""
    lines = [f"| student, mean of the last fifth | {' | '.join(LOSSES.values())} | updates |", "|---" * 6 + "|"]
    for name, rows in logs.items():
        end = last_fifth(rows)
        values = " | ".join(f"{end[loss]:.3f}" for loss in LOSSES)
        lines.append(f"| {RUNS[name]} | {values} | {rows[-1]['step']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
