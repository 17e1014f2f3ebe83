"""One class a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from emmental.errors import UserError
from emmental.tasks import metrics
from emmental.tasks.kinds.kind import Kind, Metrics, SameAnswer
from emmental.tasks.labels import number_in
from emmental.tasks.linear_models import classifier
from emmental.tasks.wording import LONGEST_LIST

if TYPE_CHECKING:
    from emmental.tasks.task import Task


class OneClass(Kind):
    """One class of two or more for each row."""

    problem_type = "single_label_classification"
    asked = "one class a row"
    metric_names, primary = ("acc", "f1"), "acc"
    label_dtype = np.int64
    constant_title = "always the largest class"

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Class ids; the lowest on ties."""
        return logits.argmax(axis=1)

    def metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> Metrics:
        """See `Kind.metrics`."""
        return metrics.of_classes(task, predictions, labels)

    def more_metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> Metrics:
        """Balanced accuracy and macro F1, if one class has most of the rows."""
        return metrics.class_shares(task, predictions, labels)

    def entropy(self, logits: np.ndarray) -> float | None:
        """Mean entropy of the softmax."""
        return metrics.prediction_entropy(logits)

    def always_the_same(self, known: np.ndarray, labels: np.ndarray) -> Metrics:
        """Accuracy of the largest class."""
        return {"acc": float((labels == np.bincount(known[known >= 0]).argmax()).mean())}

    def shows_constant(self, constant: Metrics) -> bool:
        """If the largest class has most of the rows."""
        return constant.get("acc", 0.0) >= metrics.MOSTLY_ONE

    def beats_constant(self, logits: np.ndarray, labels: np.ndarray) -> bool:
        """By the number of right answers."""
        return bool((logits.argmax(1) == labels).sum() > np.bincount(labels).max())

    def collapsed(self, task: Task, predictions: np.ndarray) -> int | None:
        """See `Kind.collapsed`."""
        return metrics.collapsed_to_one_class(predictions, task.num_labels)

    def same_answer(self, task: Task, answer: int, labels: np.ndarray | None) -> SameAnswer:
        """See `Kind.same_answer`."""
        name, share = repr(task.labels[answer]), 0.0 if labels is None else float((labels == answer).mean())
        classes = 1 if labels is None else len(np.unique(labels))
        return SameAnswer(
            f"class {name}",
            share,
            f"{100 * share:.1f} % of the rows are of it: the accuracy is that of always answering {name} (balanced "
            f"accuracy {1 / classes:.2f}). More training rows of the other classes help, or fewer of {name}",
        )

    def same_label(self, task: Task, labels: np.ndarray) -> str | None:
        """See `Kind.same_label`."""
        return f"of one class, {task.names[int(labels[0])]!r}" if len(labels) and not np.ptp(labels) else None

    def spelled(self, task: Task, predictions: np.ndarray) -> list[str]:
        """The labels.

        Raises:
            UserError: an unknown class id.
        """
        if len(predictions) and not (predictions.min() >= 0 and predictions.max() < task.num_labels):
            raise UserError(f"class ids from 0 to {task.num_labels - 1} are expected for task {task.name}")
        return [task.labels[int(number)] for number in predictions]

    def names_of(self, task: Task, labels: np.ndarray) -> list[str]:
        """See `Kind.names_of`."""
        return [task.names[int(label)] for label in labels]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Softmax."""
        powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True, initial=-np.inf))
        return powers / powers.sum(1, keepdims=True)

    def agreement(self, logits: np.ndarray, others: np.ndarray) -> float | None:
        """See `Kind.agreement`."""
        return float((logits.argmax(1) == others.argmax(1)).mean()) if logits.shape[1] > 1 else None

    def constant(self, task: Task, labels: np.ndarray, rows: int) -> np.ndarray:
        """The largest class."""
        return np.full(rows, np.bincount(labels).argmax())

    def fit(self, features: Any, labels: np.ndarray) -> Callable[[Any], np.ndarray] | None:
        """Logistic regression."""
        return None if len(np.unique(labels)) < 2 else classifier().fit(features, labels).predict

    def describe(self, task: Task) -> str:
        """See `Kind.describe`."""
        numbers = all(number_in(label) is not None for label in task.labels) and task.labels == task.names
        other = " (--task_kind regression takes the labels as scores)" if numbers else ""
        return f"classification, {len(task.names)} classes{other}"

    def describe_labels(self, task: Task, labels: np.ndarray) -> str:
        """Rows of each class."""
        counts = np.bincount(labels, minlength=task.num_labels)
        shown = [f"{name} {count}" for name, count in zip(task.names, counts, strict=True)]
        if len(shown) > LONGEST_LIST:
            shown = [*shown[:LONGEST_LIST], f"{len(shown) - LONGEST_LIST} more classes"]
        return f": {', '.join(shown)}; the largest class is {100 * counts.max() / len(labels):.1f} %"

    def never_seen(self, task: Task, labels: np.ndarray) -> list[str]:
        """See `Kind.never_seen`."""
        counts = np.bincount(labels, minlength=task.num_labels)
        return [name for name, count in zip(task.names, counts, strict=True) if not count]
