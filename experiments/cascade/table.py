"""Cascades of one task, counted on dev rows that nothing was trained or calibrated on, as JSON and as a table.

python -m experiments.cascade.table outputs/cascade/tickets --into experiments/cascade/tickets.json

Every model runs in ONNX Runtime fp32 with one thread. Times are processor time: of single texts, and of batches of 32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emmental import atomic
from emmental.cascade import Cascade, build_cascade, load
from emmental.cascade.building import Training
from emmental.cascade.rows import Rows, read_rows
from emmental.cascade.serving import Step
from emmental.errors import UserError
from emmental.latency import machine

PROMISES = (0.01, 0.03, 0.1, 0.2)
"""The last two show what the dense accuracy within its noise allows, however many answers change."""
_TIMED, _BATCH, _TURNS = 300, 32, 3


def main() -> None:
    """Build a cascade for each promise and count on the dev rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="with `rows` (experiments.cascade.rows) and `models` (the trainer)")
    parser.add_argument("--into", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    train, calibrate, dev = (
        read_rows(args.folder / "rows" / f"{name}.csv", "") for name in ("train", "calibrate", "dev")
    )
    models = args.folder / "models"  # itself the smallest of the ladder
    stages = [models, *sorted(models.glob("keep-*")), models / "dense"]
    cascades = {}
    for promise in PROMISES:
        served = args.folder / f"served-{promise:g}"
        given = {"training": Training(train.texts, train.labels), "engine": "onnx", "threads": 1}
        try:
            build_cascade(stages, calibrate.texts, served, changed=promise, **given)
        except UserError as error:  # too few rows for this promise
            print(f"{promise:g}: {error}")
            continue
        cascades[promise] = load(served, threads=1)
    rows = measured(cascades, dev)
    atomic.write_json(args.into, {"machine": machine(), "dev": len(dev.texts), "rows": rows})
    print(table(rows))


def measured(cascades: dict[float, Cascade], dev: Rows) -> list[dict[str, Any]]:
    """A row for the last stage alone, and for each cascade; timed in turns."""
    first = next(iter(cascades.values()))
    final = first.steps[-1]
    alone = Cascade(first.labels, [Step(final.name, final.stage, 0.0, 1.0)], first.several, first.pairs, {})
    every = {final.name: alone} | {f"cascade, {100 * share:g} % may change": one for share, one in cascades.items()}
    answers = {name: one.classify(dev.texts) for name, one in every.items()}
    wanted = [one["label"] for one in answers[final.name]]
    times = {size: processor_times([*every.values()], dev.texts[:_TIMED], size) for size in (1, _BATCH)}
    rows = []
    for number, (name, found) in enumerate(answers.items()):
        labels = [one["label"] for one in found]
        right = np.array([a == b for a, b in zip(labels, dev.labels, strict=True)])
        rows.append(
            {
                "name": name,
                "accuracy": float(right.mean()),
                "standard_error": float(np.sqrt(right.mean() * (1 - right.mean()) / len(right))),
                "changed": float(np.mean([a != b for a, b in zip(labels, wanted, strict=True)])),
                "milliseconds": {str(size): values[number] for size, values in times.items()},
                "answered": {step.name: sum(one["stage"] == step.name for one in found) for step in every[name].steps},
            }
        )
    return rows


def processor_times(cascades: Sequence[Cascade], texts: Sequence[Any], batch_size: int) -> list[float]:
    """Mean milliseconds for a text; each batch counts with the fastest of its turns."""
    totals = np.zeros(len(cascades))
    for begin in range(0, len(texts), batch_size):
        batch, turns = texts[begin : begin + batch_size], np.empty((_TURNS, len(cascades)))
        for turn in range(_TURNS):
            for number, cascade in enumerate(cascades):
                start = time.process_time()
                cascade.classify(batch, batch_size)
                turns[turn, number] = time.process_time() - start
        totals += turns.min(axis=0)
    return (1e3 * totals / len(texts)).tolist()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: accuracy, changed answers, times as fast as the last stage."""
    lines = ["| | accuracy | answers changed | times as fast: single texts | batches of 32 | answered by |"]
    lines.append("|---|--:|--:|--:|--:|---|")
    for row in rows:
        faster = [rows[0]["milliseconds"][size] / row["milliseconds"][size] for size in ("1", str(_BATCH))]
        by = ", ".join(f"{name} {count}" for name, count in row["answered"].items())
        accuracy = f"{100 * row['accuracy']:.1f} ± {100 * row['standard_error']:.1f}"
        cells = [row["name"], accuracy, f"{100 * row['changed']:.1f} %", *(f"{one:.1f}" for one in faster), by]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
