"""Any number of labels a row."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, log_expit

from emmental.tasks import metrics
from emmental.tasks.kinds.kind import Kind, Metrics, SameAnswer
from emmental.tasks.linear_models import classifier
from emmental.tasks.wording import LONGEST_LIST, listed

if TYPE_CHECKING:
    from emmental.tasks.task import Task


class SeveralLabels(Kind):
    """Any number of labels for each row, each with a probability of its own. One with more than 0.5 is given."""

    problem_type = "multi_label_classification"
    noun = "classifier (several labels at once)"
    asked = "several labels a row"
    metric_names, primary = ("micro_f1", "macro_f1", "average_precision", "subset_accuracy"), "micro_f1"
    constant_title = "always the most frequent labels"
    note = (
        "A text has any number of labels: each has a probability of its own, the sigmoid of its logit, and is given "
        "above 0.5. `pipeline(..., top_k=None)` gives all of them."
    )

    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """(N, L) float64 probabilities."""
        return self.probabilities(logits)

    def metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> Metrics:
        """See `Kind.metrics`."""
        return metrics.of_several_labels(predictions, labels)

    def entropy(self, logits: np.ndarray) -> float:
        """Mean entropy of the Bernoulli distributions: log 2 is undecided."""
        logits = logits.astype(np.float64)
        yes, no = log_expit(logits), log_expit(-logits)
        return float(-(np.exp(yes) * yes + np.exp(no) * no).mean())

    def always_the_same(self, known: np.ndarray, labels: np.ndarray) -> Metrics:
        """Micro F1 of the set of labels that has the highest one on the rows `known`."""
        answer = np.tile(_best_set(known[~np.isnan(known).any(axis=1)]), (len(labels), 1))
        return {self.primary: metrics.of_several_labels(answer, labels)[self.primary]}

    def beats_constant(self, logits: np.ndarray, labels: np.ndarray) -> bool:
        """By micro F1."""
        reached = metrics.of_several_labels(self.probabilities(logits), labels)[self.primary]
        return reached > self.always_the_same(labels, labels)[self.primary]

    def collapsed(self, task: Task, predictions: np.ndarray) -> np.ndarray | None:
        """See `Kind.collapsed`."""
        given = predictions > metrics.THRESHOLD
        return None if len(given) < 2 or (given != given[0]).any() else given[0]

    def same_answer(self, task: Task, answer: np.ndarray, labels: np.ndarray | None) -> SameAnswer:
        """See `Kind.same_answer`."""
        share = 0.0 if labels is None else float((labels.astype(bool) == answer).all(axis=1).mean())
        more = "more training rows of the labels that are never given help"
        return SameAnswer(
            _named(task.labels, answer), share, f"{100 * share:.1f} % of the rows have exactly that: {more}"
        )

    def same_label(self, task: Task, labels: np.ndarray) -> str | None:
        """See `Kind.same_label`."""
        same = len(labels) and not np.ptp(labels, axis=0).any()
        return f"with the same labels, {_named(task.names, labels[0] > 0)}" if same else None

    def spelled(self, task: Task, predictions: np.ndarray) -> list[str]:
        """The labels of a row as a list in JSON."""
        return [json.dumps(names, ensure_ascii=False) for names in self.names_of(task, predictions)]

    def names_of(self, task: Task, labels: np.ndarray) -> list[list[str]]:
        """See `Kind.names_of`."""
        given = np.asarray(labels) > metrics.THRESHOLD
        return [[task.names[label] for label in np.flatnonzero(row)] for row in given]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Sigmoid."""
        return expit(logits.astype(np.float64))

    def agreement(self, logits: np.ndarray, others: np.ndarray) -> float:
        """Share of rows that get the same labels."""
        return float(((logits > 0) == (others > 0)).all(axis=1).mean())

    def constant(self, task: Task, labels: np.ndarray, rows: int) -> np.ndarray:
        """The share of rows that have each label."""
        return np.tile(labels.mean(axis=0, dtype=np.float64), (rows, 1))

    def fit(self, features: Any, labels: np.ndarray) -> Callable[[Any], np.ndarray]:
        """Logistic regression of each label against the rest. One that all rows have, or none, has no model."""
        varying = [label for label in range(labels.shape[1]) if np.ptp(labels[:, label])]
        models = {label: classifier().fit(features, labels[:, label] > 0) for label in varying}

        def predict(rows: Any) -> np.ndarray:
            found = self.constant(None, labels, rows.shape[0])
            for label, model in models.items():
                found[:, label] = model.predict_proba(rows)[:, 1]
            return found

        return predict

    def describe(self, task: Task) -> str:
        """See `Kind.describe`."""
        return f"several labels at once, {len(task.names)} labels"

    def describe_labels(self, task: Task, labels: np.ndarray) -> str:
        """Rows of each label, and how many a row has."""
        counts = labels.sum(axis=0, dtype=np.int64)
        shown = [f"{name} {count}" for name, count in zip(task.names, counts, strict=True)]
        if len(shown) > LONGEST_LIST:
            shown = [*shown[:LONGEST_LIST], f"{len(shown) - LONGEST_LIST} more labels"]
        empty = int((~labels.any(axis=1)).sum())
        return f": {', '.join(shown)}; {counts.sum() / len(labels):.2f} labels a row, {empty} rows without any"

    def never_seen(self, task: Task, labels: np.ndarray) -> list[str]:
        """See `Kind.never_seen`."""
        return [name for name, some in zip(task.names, labels.any(axis=0), strict=True) if not some]


def _best_set(labels: np.ndarray) -> np.ndarray:
    """(L,) 0 and 1: of the sets of the most frequent labels, the one with the highest micro F1. With k labels of n_i
    rows each, given to all N rows, that is 2 sum(n_i) / (k N + all labels).
    """
    counts = labels.sum(axis=0, dtype=np.float64)
    order = np.argsort(-counts, kind="stable")
    reached = 2 * np.cumsum(counts[order]) / (np.arange(1, len(counts) + 1) * len(labels) + max(counts.sum(), 1))
    best = np.zeros(len(counts))
    best[order[: int(reached.argmax()) + 1]] = 1
    return best


def _named(names: tuple[str, ...], given: np.ndarray) -> str:
    found = [name for name, has in zip(names, given, strict=True) if has]
    return f"labels {listed(found)}" if found else "no label"
