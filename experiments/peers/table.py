"""Metric, milliseconds and megabytes of the finished runs of one task, in every engine, as JSON and as a table.

python -m experiments.peers.table outputs/peers/mrpc --data_dir glue/MRPC --task_name mrpc --into mrpc.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from transformers import AutoModelForSequenceClassification, PreTrainedModel

import emmental.small_models  # noqa: F401  (the Auto classes then load small models)
from emmental import atomic
from emmental.inference.engines import ONNX, ONNX_INT8, TORCH, TORCH_BF16, available, measure_together
from emmental.inference.latency import machine
from emmental.reporting.before_after import encoder_weights
from emmental.tasks import read_split, resolve_task, user_task
from emmental.tasks.bag_of_words import bag_of_words

SHAPES = ((1, 32), (1, 128), (8, 128))
ENGINES = (TORCH, TORCH_BF16, ONNX, ONNX_INT8)
"""int8 is only timed; the report of a model has its accuracy."""


def main() -> None:
    """Measure the runs of a task side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("outputs", type=Path, help="folder with an output folder for each run")
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--task_name")
    parser.add_argument("--train_file", type=Path)
    parser.add_argument("--validation_file", type=Path)
    parser.add_argument("--into", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    folders = sorted(path.parent for path in args.outputs.glob("*/summary.json"))
    summaries = {folder.name: json.loads((folder / "summary.json").read_text()) for folder in folders}
    models = {folder.name: AutoModelForSequenceClassification.from_pretrained(folder) for folder in folders}
    times = milliseconds(models)
    rows = {
        name: {
            "metrics": summary["metrics"],
            "weights": encoder_weights(models[name]),
            "megabytes": (args.outputs / name / "model.safetensors").stat().st_size / 1e6,
            "milliseconds": times[name],
        }
        for name, summary in summaries.items()
    }
    rows["bag of words"] = {"metrics": floor(args), "weights": 0, "megabytes": None, "milliseconds": {}}
    atomic.write_json(args.into, {"machine": machine(), "rows": rows})
    print(table(rows))


def milliseconds(models: dict[str, PreTrainedModel]) -> dict[str, dict[str, float]]:
    """Model -> "engine, batch x length" -> median; all models take turns in each."""
    found: dict[str, dict[str, float]] = {name: {} for name in models}
    for engine in (engine for engine in ENGINES if engine in available()):
        for batch, length in SHAPES:
            for name, median in measure_together(models, batch, length, engine, seconds=1.0).items():
                found[name][f"{engine}, {batch} x {length}"] = round(median, 2)
    return found


def floor(args: argparse.Namespace) -> dict[str, float]:
    """Result of a bag of words on the same rows."""
    if args.train_file:
        task = user_task(args.train_file, args.validation_file, None)
    else:
        task = resolve_task(args.task_name)
    return bag_of_words(task, *(read_split(task, args.data_dir, split) for split in ("train", "dev"))).metrics


def table(rows: dict[str, dict]) -> str:
    """Markdown: a line for each model, the best first."""
    metric = next(iter(rows["dense"]["metrics"]))
    timed = list(rows["dense"]["milliseconds"])
    lines = [f"| model | {metric} | MB | {' | '.join(timed)} |", "|---|" + "--:|" * (len(timed) + 2)]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["metrics"][metric]):
        cells = [f"{row['milliseconds'][shape]:.1f}" if row["milliseconds"] else "" for shape in timed]
        size = "" if row["megabytes"] is None else f"{row['megabytes']:.0f}"
        lines.append(f"| {name} | {100 * row['metrics'][metric]:.1f} | {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
