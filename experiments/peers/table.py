"""Accuracy, milliseconds and megabytes of the finished runs of one task, in every engine, as JSON and as tables.

python -m experiments.peers.table outputs/peers/mrpc --data_dir glue/MRPC --task_name mrpc --into mrpc.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import emmental.small_models  # noqa: F401  (the Auto classes then load small models)
from emmental import atomic
from emmental.data import FeatureDataset, load_features
from emmental.data.tokenization import load_tokenizer
from emmental.inference.engines import ENGINES, ONNX, ONNX_INT8, TORCH, TORCH_BF16, available, prepare
from emmental.latency import machine, measure
from emmental.reporting.before_after import nonzero_encoder_weights
from emmental.runs.evaluation import predict_logits
from emmental.runs.precision import Precision
from emmental.runs.processes import Processes
from emmental.tasks import Task, predictions_from_logits, read_split, resolve_task, user_task
from emmental.tasks.bag_of_words import bag_of_words
from experiments.peers.verdict import verdicts

SHAPES = ((1, 32), (1, 128), (8, 128))
TRIED = (TORCH, TORCH_BF16, ONNX, ONNX_INT8)
WORDS = "bag of words"
_LONGEST = 128


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
    task = task_of(args)
    folders = model_folders(args.outputs)
    models = {name: AutoModelForSequenceClassification.from_pretrained(folder) for name, folder in folders.items()}
    rows: dict[str, dict] = {
        name: {
            "accuracy": {},
            "weights": nonzero_encoder_weights(model),
            "megabytes": (folders[name] / "model.safetensors").stat().st_size / 1e6,
            "milliseconds": {},
        }
        for name, model in models.items()
    }
    tokenizer = load_tokenizer(args.outputs / "dense")
    dev = load_features(task, args.data_dir, "dev", tokenizer, _LONGEST, args.outputs / "features")
    right: dict[tuple[str, str], np.ndarray] = {}
    for engine in (engine for engine in TRIED if engine in available()):
        for name, (milliseconds, correct) in in_engine(models, engine, task, dev).items():
            rows[name]["milliseconds"] |= milliseconds
            rows[name]["accuracy"][engine] = float(correct.mean())
            right[name, engine] = correct
    words = bag_of_words(task, *(read_split(task, args.data_dir, split) for split in ("train", "dev")))
    right[WORDS, TORCH] = words.predictions == np.asarray(dev.labels)
    rows[WORDS] = {"accuracy": {TORCH: float(right[WORDS, TORCH].mean())}, "milliseconds": {}}
    found = {f"{batch} x {length}": verdicts(rows, right, f"{batch} x {length}") for batch, length in SHAPES}
    facts = machine() | {"threads": torch.get_num_threads()}
    atomic.write_json(args.into, {"machine": facts, "dev": len(dev), "rows": rows, "verdicts": found})
    print(table(rows), "", *found["1 x 128"], sep="\n")


def task_of(args: argparse.Namespace) -> Task:
    """The task that the flags name."""
    return user_task(args.train_file, args.validation_file, None) if args.train_file else resolve_task(args.task_name)


def model_folders(outputs: Path) -> dict[str, Path]:
    """Name -> folder of the finished models; `cut-*` is the model of `ours-*` before training."""
    folders = {path.parent.name: path.parent for path in sorted(outputs.glob("*/summary.json"))}
    cut = {
        name.replace("ours-", "cut-"): folder / "pruned"
        for name, folder in folders.items()
        if name.startswith("ours-")
    }
    return folders | cut


def in_engine(
    models: Mapping[str, PreTrainedModel], engine: str, task: Task, dev: FeatureDataset
) -> dict[str, tuple[dict[str, float], np.ndarray]]:
    """Model -> ("engine, batch x length" -> median milliseconds, which dev rows it gets right); timed in turns.

    int8 is what `emmental.export.onnx` writes without calibration texts.
    """
    ready: dict[str, nn.Module] = {name: prepare(model, engine) for name, model in models.items()}
    times: dict[str, dict[str, float]] = {name: {} for name in models}
    words = min(model.config.vocab_size for model in models.values())
    for batch, length in SHAPES:
        for row in measure(ready, batch, length, torch.get_num_threads(), words, seconds=1.0):
            times[row.model][f"{engine}, {batch} x {length}"] = round(row.median_ms, 2)
    alone, labels = Processes(device=torch.device("cpu")), np.asarray(dev.labels)
    found = {}
    for name, model in ready.items():
        logits = predict_logits(model, dev, 32, alone, Precision(alone.device), f"{name}, {ENGINES[engine].title}")
        found[name] = times[name], predictions_from_logits(task, logits.numpy()) == labels
    return found


def table(rows: Mapping[str, dict]) -> str:
    """Markdown: a line for each model, the best first; accuracy in %, milliseconds."""
    engines, timed = list(rows["dense"]["accuracy"]), list(rows["dense"]["milliseconds"])
    lines = [f"| | {' | '.join(engines)} | MB | {' | '.join(timed)} |", "|---|" + "--:|" * (len(timed + engines) + 1)]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["accuracy"][TORCH]):
        right = [f"{100 * row['accuracy'][engine]:.1f}" if engine in row["accuracy"] else "" for engine in engines]
        cells = [f"{row['milliseconds'][shape]:.1f}" if row["milliseconds"] else "" for shape in timed]
        size = f"{row['megabytes']:.0f}" if "megabytes" in row else ""
        lines.append(f"| {' | '.join([name, *right, size, *cells])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
