"""Cascades of one task, counted on dev rows that nothing was trained or calibrated on: JSON, table and picture.

python -m experiments.cascade.table outputs/cascade/tickets --into experiments/cascade/tickets.json

The single models stand beside the cascades, and so do peers: other classifiers of the same rows, such as the first
three or two layers of the dense model. Every model runs in ONNX Runtime fp32 with one thread. Times are processor
time: of single texts, and of batches of 32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emmental import atomic
from emmental.cascade import Cascade
from emmental.cascade.models import WrittenStage
from emmental.cascade.promise import DELTA, calibrate, rows_needed
from emmental.cascade.rows import Rows
from emmental.cascade.serving import ReadyStage
from emmental.cascade.timing import MS_ALONE
from emmental.command_line import user_mistakes
from emmental.latency import machine
from emmental.pictures.canvas import Chart
from emmental.pictures.cascade import cascade_picture
from experiments.cascade.stages import SEED, TaskStages, task_stages

PROMISES = (0.01, 0.03, 0.1, 0.2)
"""The last two show what the dense accuracy within its noise allows, however many answers change."""
_TIMED, _BATCH, _TURNS = 300, 32, 3
_CASCADE = "cascade, "


def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate a cascade for each promise, and count on the dev rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="with `rows` (experiments.cascade.rows) and `models` (the trainer)")
    parser.add_argument(
        "--into", type=Path, required=True, help="JSON file to write; the picture is written beside it"
    )
    parser.add_argument(
        "--peers", type=Path, nargs="*", help="folders of other models; default: those in FOLDER/peers"
    )
    args = parser.parse_args(argv)
    peers = sorted(args.folder.glob("peers/*")) if args.peers is None else args.peers
    with user_mistakes(), tempfile.TemporaryDirectory() as place:
        task = task_stages(args.folder, Path(place), peers)
        rows = measured(compared(task), task.dev)
        atomic.write_json(args.into, {"machine": machine(), "dev": len(task.dev.texts), "rows": rows})
        picture(rows, args.folder.name).save(args.into.with_suffix(".png"))
    print(table(rows))


def compared(task: TaskStages) -> dict[str, Cascade]:
    """Name of a row -> what answers: the last stage alone, the other models and the peers alone, then the cascades."""

    def cascade(steps: Sequence[ReadyStage]) -> Cascade:
        pairs = not isinstance(task.dev.texts[0], str)
        return Cascade(task.last.labels, steps, task.last.several, pairs, {})

    def alone(one: WrittenStage) -> Cascade:
        return cascade([ReadyStage(one.settings["name"], one.stage, 0.0, 1.0)])

    *early, last = task.stages
    found = {one.settings["name"]: alone(one) for one in (last, *early, *task.peers)}
    promises = [one for one in PROMISES if rows_needed(one, DELTA) <= len(task.calibrate.texts)]
    logits = [one.logits for one in task.stages]
    result = calibrate(
        logits, task.milliseconds[MS_ALONE], promises[0], DELTA, task.last.several, SEED, epsilons=promises
    )
    for one in result.table:
        steps = [
            ReadyStage(stage.settings["name"], stage.stage, threshold, temperature)
            for stage, threshold, temperature in zip(early, one.thresholds, result.temperatures, strict=True)
            if np.isfinite(threshold)
        ]
        final = ReadyStage(last.settings["name"], last.stage, 0.0, 1.0)
        found[f"{_CASCADE}{100 * one.promise:g} % may change"] = cascade([*steps, final])
    return found


def measured(every: Mapping[str, Cascade], dev: Rows) -> list[dict[str, Any]]:
    """A row for each, timed in turns. Answers are compared with those of the first."""
    answers = {name: one.classify(dev.texts) for name, one in every.items()}
    wanted = [one["label"] for one in next(iter(answers.values()))]
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


def picture(rows: Sequence[dict[str, Any]], title: str) -> Chart:
    """Answers changed and accuracy over milliseconds of single texts: models and peers alone, and the cascade."""
    joined = [row for row in rows if row["name"].startswith(_CASCADE)]
    alone = [row for row in rows if row not in joined]
    quantities = {"answers changed (%)": "changed", "accuracy (%)": "accuracy"}
    return cascade_picture(
        [row["name"] for row in alone],
        [row["milliseconds"]["1"] for row in alone],
        [row["name"].removeprefix(_CASCADE).removesuffix(" may change") for row in joined],
        [row["milliseconds"]["1"] for row in joined],
        {
            name: tuple([100 * row[key] for row in those] for those in (alone, joined))
            for name, key in quantities.items()
        },
        title=f"{title}: a cascade beside its models",
    )


if __name__ == "__main__":
    main()
