"""Writes predictions: as the GLUE server takes them; for own files with the probabilities too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emmental.atomic import write_text
from emmental.errors import UserError
from emmental.tasks.task import CUSTOM, Task


def write_predictions(
    folder: str | Path,
    task: Task,
    predictions: np.ndarray,
    indices: Sequence[str],
    logits: np.ndarray | None = None,
) -> Path:
    """Write `<folder>/<task.prediction_file>`: a header and lines of index, tab, prediction.

    For classes of own files, a column with the probability of each class follows.

    Args:
        folder: created if it is missing.
        task: gives the file's name and the spelling of the labels.
        predictions: (N,) class ids, or scores. Scores of a task with a range are clipped to it.
        indices: the examples' names, in the order of the predictions.
        logits: (N, classes), for the probabilities; not used for GLUE tasks.

    Returns:
        The path of the file. The file is written whole or not at all.

    Raises:
        UserError: a different number of indices, an unknown class id, or a score that is not finite.
    """
    predictions = np.asarray(predictions)
    if predictions.shape != (len(indices),):
        raise UserError(f"{predictions.shape} predictions for {len(indices)} examples")
    spelled = _scores(task, predictions) if task.is_regression else _labels(task, predictions)
    columns = [["index", *indices], ["prediction", *spelled]]
    if logits is not None and task.name == CUSTOM and not task.is_regression:
        columns += _probabilities(task, logits)
    lines = ["\t".join(row) for row in zip(*columns, strict=True)]
    path = Path(folder) / task.prediction_file
    write_text(path, "\n".join(lines) + "\n")
    return path


def _labels(task: Task, predictions: np.ndarray) -> list[str]:
    if len(predictions) and not (predictions.min() >= 0 and predictions.max() < task.num_labels):
        raise UserError(f"class ids from 0 to {task.num_labels - 1} are expected for task {task.name}")
    return [task.labels[int(number)] for number in predictions]


def _probabilities(task: Task, logits: np.ndarray) -> list[list[str]]:
    """A column for each class: its heading, then the softmax of the logits."""
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True, initial=-np.inf))
    shares = powers / powers.sum(1, keepdims=True)
    return [
        [f"probability of {label}", *(f"{share:.6f}" for share in column)]
        for label, column in zip(task.labels, shares.T, strict=True)
    ]


def _scores(task: Task, predictions: np.ndarray) -> list[str]:
    if not np.isfinite(predictions).all():
        raise UserError("predictions hold NaN or infinity")
    if task.label_range is None:
        return [f"{value:.6g}" for value in predictions]
    low, high = task.label_range
    return [f"{min(max(low, float(value)), high):.3f}" for value in predictions]
