"""A score a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import Ridge

from emmental.errors import UserError
from emmental.tasks import metrics
from emmental.tasks.kinds.kind import Kind, Metrics

if TYPE_CHECKING:
    from emmental.tasks.task import Task


class Score(Kind):
    """A number for each row: regression."""

    problem_type = "regression"
    noun = "regressor"
    asked = "a score a row"
    metric_names, primary = ("pearson", "spearmanr", "corr", "rmse", "mae"), "corr"
    constant_title = "always the mean"
    has_scores = True

    def settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        """See `Kind.settings`."""
        return {"num_labels": 1, "problem_type": self.problem_type}

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Float32 scores."""
        return logits[:, 0].astype(np.float32)

    def metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> Metrics:
        """See `Kind.metrics`."""
        return metrics.of_scores(predictions, labels)

    def always_the_same(self, known: np.ndarray, labels: np.ndarray) -> Metrics:
        """Errors of the mean."""
        known = known[~np.isnan(known)]
        return metrics.errors(np.full(len(labels), known.mean(dtype=np.float64)), labels.astype(np.float64))

    def beats_constant(self, logits: np.ndarray, labels: np.ndarray) -> bool:
        """By the squared error of the mean."""
        return bool(((logits[:, 0] - labels) ** 2).mean() < labels.var(ddof=1))

    def spelled(self, task: Task, predictions: np.ndarray) -> list[str]:
        """Numbers, clipped to the task's range.

        Raises:
            UserError: a score is not finite.
        """
        if not np.isfinite(predictions).all():
            raise UserError("predictions hold NaN or infinity")
        if task.label_range is None:
            return [f"{value:.6g}" for value in predictions]
        low, high = task.label_range
        return [f"{min(max(low, float(value)), high):.3f}" for value in predictions]

    def constant(self, task: Task, labels: np.ndarray, rows: int) -> np.ndarray:
        """The mean."""
        return np.full(rows, labels.mean())

    def fit(self, features: Any, labels: np.ndarray) -> Callable[[Any], np.ndarray]:
        """Ridge regression."""
        return Ridge(alpha=1.0).fit(features, labels).predict

    def describe(self, task: Task) -> str:
        """See `Kind.describe`."""
        return "regression of a score (--task_kind classification takes the labels as classes)"

    def describe_labels(self, task: Task, labels: np.ndarray) -> str:
        """Lowest and highest score."""
        return f"; scores from {labels.min():g} to {labels.max():g}"
