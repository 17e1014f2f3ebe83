"""The last lines of a run: the best engine of this machine for the finished model, and how to load it there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from emmental.architectures import longest_input
from emmental.data import FeatureDataset
from emmental.errors import UserError
from emmental.export.calibration import FORMS
from emmental.inference.comparison import (
    FORM_TITLES,
    Comparison,
    Evaluation,
    best_engine,
    changed_answers,
    compare_engines,
)
from emmental.inference.engines import ENGINES, ONNX_INT8, code_line, why_not_timed
from emmental.reporting.before_after import BATCH, LENGTH, TrainedModels
from emmental.reporting.calibration import calibration_batches, rows_by_length
from emmental.tasks import Task, compute_metrics, predictions_from_logits

MOST_ROWS = 1000
"""Every engine answers at most this many dev rows, spread evenly over all."""
_ROWS_AT_ONCE = 32


def engine_lines(
    task: Task, dev: FeatureDataset, train: FeatureDataset, made: TrainedModels, folder: str
) -> list[str]:
    """The best engine for one sentence of 128 tokens, how to load the model there, and the engines not offered.

    Args:
        task: of the run.
        dev: rows that every engine answers.
        train: rows that int8 is calibrated on.
        made: results of the run.
        folder: of the finished model.
    """
    model = made.model.eval()
    length, batches = min(LENGTH, longest_input(model.config)), calibration_batches(train)
    evaluate = partial(_evaluated, task, dev, rows_by_length(dev, MOST_ROWS))
    try:
        compared = compare_engines(model, evaluate, (BATCH, length), calibration=batches)
    except UserError as error:  # the model is finished and saved, so a failing engine must not end the run
        return [f"other engines could not be tried: {error}"]
    dense, *_, own = [row.milliseconds for row in made.timed(task.primary_metric) if row.milliseconds is not None]
    rows = sum(len(batch["input_ids"]) for batch in batches)
    tried = [] if compared.int8_form is None else [both_tried(compared.int8_form, f"{rows} training rows")]
    return [*advice(compared, folder, model.config.model_type, dense / own), *tried]


def _evaluated(task: Task, dev: FeatureDataset, rows: np.ndarray, engine: nn.Module, title: str) -> Evaluation:
    logits = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        batch = dev.batch(rows[start : start + _ROWS_AT_ONCE])
        logits.append(engine(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]).logits)
    together = torch.cat(logits).numpy()
    metrics = compute_metrics(task, predictions_from_logits(task, together), np.asarray(dev.labels)[rows])
    return Evaluation(together, metrics, metrics[task.primary_metric], task.kind.agreement)


def both_tried(form: str, data: str) -> str:
    """That dynamic and static int8 were tried on these data, and which one is kept."""
    return f"ONNX Runtime int8: dynamic and static were tried on {data}; kept: {FORMS[form]}"


def advice(compared: Comparison, folder: str | Path, model_type: str, dense_speedup: float = 1.0) -> list[str]:
    """The last lines of a run: the best engine, code that loads the model, engines that are not offered.

    Args:
        compared: engines at one shape.
        folder: of the model.
        model_type: of its configuration.
        dense_speedup: how many times as fast as the dense model it is in PyTorch fp32.
    """
    best = best_engine(compared.latency, compared.not_offered)
    name, form = best["model"], compared.int8_form if best["model"] == ONNX_INT8 else None
    title = FORM_TITLES[name] + ("" if form is None else f" ({FORMS[form]})")
    text = f"{title}: {best['median_ms']:.2f} ms, {best['speedup']:.1f} times PyTorch fp32"
    if ENGINES[name].rounds:
        row = next(row for row in compared.quality if row["name"] == name)
        changed = "" if row["agreement"] is None else f", {changed_answers(row)} change"
        text += f"; {100 * (row['judged'] - compared.quality[0]['judged']):+.2f} points{changed}"
    absent: dict[str, list[str]] = {}
    for engine, known in ENGINES.items():
        if reason := why_not_timed(engine):
            absent.setdefault(reason, []).append(known.title)
    return [
        f"The best engine on this machine, for {best['batch']} x {best['length']} tokens, is {text}; "
        f"{dense_speedup * best['speedup']:.1f} times the dense model in PyTorch fp32",
        *code_line(name, folder, model_type, form).splitlines(),
        *(f"not offered: {why}" for why in compared.not_offered.values()),
        *(f"{', '.join(titles)}: {reason}" for reason, titles in absent.items()),
    ]
