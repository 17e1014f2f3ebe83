"""GLUE tasks and the user's own files: rows, labels, metrics and prediction files."""

from emmental.tasks.classes import class_order, in_order_of
from emmental.tasks.examples import read_held_back, read_split, split_files
from emmental.tasks.glue import TASKS, evaluation_tasks, resolve_task
from emmental.tasks.held_back import hold_back
from emmental.tasks.metrics import (
    always_the_same,
    class_shares,
    collapsed_to_one_class,
    compute_metrics,
    metric_text,
    metric_title,
    prediction_entropy,
    predictions_from_logits,
)
from emmental.tasks.own_files import task_of_model, unlabelled_task, user_task
from emmental.tasks.predictions import write_predictions
from emmental.tasks.task import CUSTOM, Split, Task

__all__ = [
    "CUSTOM",
    "TASKS",
    "Split",
    "Task",
    "always_the_same",
    "class_order",
    "class_shares",
    "collapsed_to_one_class",
    "compute_metrics",
    "evaluation_tasks",
    "hold_back",
    "in_order_of",
    "metric_text",
    "metric_title",
    "prediction_entropy",
    "predictions_from_logits",
    "read_held_back",
    "read_split",
    "resolve_task",
    "split_files",
    "task_of_model",
    "unlabelled_task",
    "user_task",
    "write_predictions",
]
