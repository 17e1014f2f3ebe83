"""The last lines of a run: the best engine of this machine for the finished model, and how to load it there."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from emmental.architectures import longest_input
from emmental.data import FeatureDataset
from emmental.errors import UserError
from emmental.export.calibration import CALIBRATION_ROWS, CALIBRATION_TOKENS, FORMS
from emmental.inference.engines import advice, best_engine, compare
from emmental.reporting.before_after import BATCH, LENGTH, TrainedModels, on_cpu
from emmental.reporting.calibration import spread_rows
from emmental.runs.run import Run
from emmental.tasks import compute_metrics, predictions_from_logits

MOST_ROWS = 1000
"""Every engine answers at most this many dev rows, spread evenly over all."""
_ROWS_AT_ONCE, _CALIBRATED_AT_ONCE = 32, 8


def best_engine_lines(run: Run, made: TrainedModels) -> list[str]:
    """The best engine for one sentence of 128 tokens, how to load the model there, and the engines not offered.

    Args:
        run: a run whose dev data is open.
        made: its results.
    """
    dev = run.datasets[run.task.name, "dev"]
    by_length = _rows_by_length(dev, MOST_ROWS)
    labels = np.asarray(dev.labels)[by_length]
    model = on_cpu(made.model).eval()

    def answer(engine: nn.Module) -> np.ndarray:
        logits = []
        for start in range(0, len(by_length), _ROWS_AT_ONCE):
            batch = dev.batch(by_length[start : start + _ROWS_AT_ONCE])
            logits.append(engine(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).logits)
        return torch.cat(logits).numpy()

    def score(logits: np.ndarray) -> float:
        found = compute_metrics(run.task, predictions_from_logits(run.task, logits), labels)
        return found[run.task.primary_metric]

    length = min(LENGTH, longest_input(model.config))
    try:
        batches = calibration_of(run.datasets[run.task.name, "train"])
        trials = compare(model, answer, score, BATCH, length, calibration=batches)
    except UserError as error:  # the model is finished and saved, so a failing engine must not end the run
        return [f"other engines could not be tried: {error}"]
    dense, *_, own = [row for row in made.timed(run.task.primary_metric) if row.milliseconds is not None]
    best = best_engine(trials)
    times = dense.milliseconds / own.milliseconds * best.speedup
    said = advice(trials, run.output_dir, model.config.model_type, BATCH, length).splitlines()
    said[0] += f"; {times:.1f} times the dense model in PyTorch fp32"
    rows = sum(len(batch["input_ids"]) for batch in batches)
    return [*said, *(both_tried(trial.form, f"{rows} training rows") for trial in trials if trial.form)]


def both_tried(form: str, data: str) -> str:
    """That dynamic and static int8 were tried on these data, and which one is kept."""
    return f"ONNX Runtime int8: dynamic and static were tried on {data}; kept: {FORMS[form]}"


def calibration_of(train: FeatureDataset) -> list[dict[str, Tensor]]:
    """Batches of training rows, spread evenly over all, which int8 is calibrated on; long rows are cut."""
    rows = _rows_by_length(train, CALIBRATION_ROWS)
    batches = [
        train.batch(rows[start : start + _CALIBRATED_AT_ONCE]) for start in range(0, len(rows), _CALIBRATED_AT_ONCE)
    ]
    names = ("input_ids", "attention_mask", "token_type_ids")
    return [{name: batch[name][:, :CALIBRATION_TOKENS] for name in names} for batch in batches]


def _rows_by_length(dataset: FeatureDataset, most: int) -> np.ndarray:
    """At most this many rows, spread evenly over all, shortest first."""
    rows = spread_rows(len(dataset), most)
    return rows[np.argsort(dataset.lengths[rows], kind="stable")]
