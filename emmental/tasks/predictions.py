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

    For classes and labels of own files, a column with the probability of each follows.

    Args:
        folder: created if it is missing.
        task: gives the file's name and the spelling of the labels.
        predictions: (N,) class ids or scores, or (N, L) probabilities of several labels. Scores of a task with a range
            are clipped to it; several labels are a list in JSON.
        indices: the examples' names, in the order of the predictions.
        logits: (N, classes), for the probabilities; not used for GLUE tasks.

    Returns:
        The path of the file. The file is written whole or not at all.

    Raises:
        UserError: a different number of indices, an unknown class id, or a score that is not finite.
    """
    predictions = np.asarray(predictions)
    if len(predictions) != len(indices):
        raise UserError(f"{predictions.shape} predictions for {len(indices)} examples")
    columns = [["index", *indices], ["prediction", *task.kind.spelled(task, predictions)]]
    shares = task.kind.probabilities(logits) if logits is not None and task.name == CUSTOM else None
    if shares is not None:
        columns += [
            [f"probability of {label}", *(f"{share:.6f}" for share in column)]
            for label, column in zip(task.labels, shares.T, strict=True)
        ]
    lines = ["\t".join(row) for row in zip(*columns, strict=True)]
    path = Path(folder) / task.prediction_file
    write_text(path, "\n".join(lines) + "\n")
    return path
