"""GLUE tasks and the user's own files: rows, labels, metrics and prediction files."""

from emmental.tasks.metrics import (
    collapsed_to_one_class,
    compute_metrics,
    prediction_entropy,
    predictions_from_logits,
)
from emmental.tasks.predictions import write_predictions
from emmental.tasks.processors import (
    TASKS,
    Split,
    Task,
    labels_of,
    read_split,
    resolve_task,
    split_files,
    user_task,
)

__all__ = [
    "TASKS",
    "Split",
    "Task",
    "collapsed_to_one_class",
    "compute_metrics",
    "labels_of",
    "prediction_entropy",
    "predictions_from_logits",
    "read_split",
    "resolve_task",
    "split_files",
    "user_task",
    "write_predictions",
]
