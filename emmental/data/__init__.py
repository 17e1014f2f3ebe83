"""Tasks, features and their cache, batches, metrics and prediction files."""

from emmental.data.batching import LengthGroupedBatches, RowBatch, SequentialBatches, padding_share
from emmental.data.features import FeatureDataset, batch_loader, collate, load_features
from emmental.data.metrics import (
    collapsed_to_one_class,
    compute_metrics,
    prediction_entropy,
    predictions_from_logits,
)
from emmental.data.predictions import write_predictions
from emmental.data.processors import (
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
    "FeatureDataset",
    "LengthGroupedBatches",
    "RowBatch",
    "SequentialBatches",
    "Split",
    "Task",
    "batch_loader",
    "collapsed_to_one_class",
    "collate",
    "compute_metrics",
    "labels_of",
    "load_features",
    "padding_share",
    "prediction_entropy",
    "predictions_from_logits",
    "read_split",
    "resolve_task",
    "split_files",
    "user_task",
    "write_predictions",
]
