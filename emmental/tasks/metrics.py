"""Metrics of predictions, under GLUE's names."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax
from scipy.stats import kendalltau, pearsonr, spearmanr
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef

from emmental.errors import UserError

if TYPE_CHECKING:
    from emmental.tasks.task import Task

logger = logging.getLogger(__name__)

ERRORS = ("rmse", "mae")
"""Metrics in the unit of the labels: the lower the better."""
THRESHOLD = 0.5
"""A label is given if its probability is above this, where a row has several labels."""
MOSTLY_ONE = 0.8
"""If the largest class has this share of the rows, accuracy alone says little."""


def compute_metrics(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics.

    Args:
        task: says which metrics: accuracy, F1 (of `task.positive_label`, or the unweighted mean over more than two
            classes), Matthews', Pearson's and Spearman's correlation, RMSE and MAE (in the unit of
            the labels), and the means `acc_and_f1` and `corr`; of several labels see `of_several_labels`.
        predictions: (N,) class ids, (N,) scores, or (N, L) probabilities of several labels.
        labels: (N,) class ids, (N,) scores, or (N, L) 0 and 1.

    Returns:
        A value for every name in `task.metrics`. Correlations of constant values are 0, with a warning in the log.

    Raises:
        UserError: no predictions, a different number of labels, a score that is not finite, or a task without
            published labels.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or not len(labels):
        raise UserError(
            f"{predictions.shape} predictions for {labels.shape} labels: the same number, at least one, is needed"
        )
    if not task.metrics:
        raise UserError(f"--task_name {task.name} has no published labels to compare with: use --do_predict")
    return task.kind.metrics(task, predictions, labels)


def of_classes(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of class ids."""
    # "mnli-mm/acc" is the accuracy under the task's own key.
    return {name: _SCORES[name.rpartition("/")[2]](task, predictions, labels) for name in task.metrics}


def of_several_labels(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of several labels at once. A label is given if its probability is above 0.5.

    Args:
        probabilities: (N, L).
        labels: (N, L) 0 and 1.

    Returns:
        `micro_f1` over all labels of all rows; `macro_f1`, the mean over labels; `average_precision`, the mean over
        the labels that some row has, whatever the threshold; `subset_accuracy`, the share of rows whose labels are all
        right. F1 without a label and without an answer is 0.
    """
    given, labels = (probabilities > THRESHOLD).astype(int), labels.astype(int)
    occur = labels.any(axis=0)
    precision = average_precision_score(labels[:, occur], probabilities[:, occur]) if occur.any() else 0.0
    return {
        "micro_f1": float(f1_score(labels, given, average="micro", zero_division=0.0)),
        "macro_f1": float(f1_score(labels, given, average="macro", zero_division=0.0)),
        "average_precision": float(precision),
        "subset_accuracy": float((labels == given).all(axis=1).mean()),
    }


def metric_text(name: str, value: float) -> str:
    """A metric's value for people: errors, which have the labels' unit, with five digits, all others as `0.1234`."""
    return f"{value:.5g}" if name in ERRORS else f"{value:.4f}"


def metric_title(task: Task, name: str) -> str:
    """A metric's name for people. For F1 it includes the class, or says that it is a mean over classes."""
    if name.rpartition("/")[2] not in ("f1", "acc_and_f1"):
        return name
    return f"{name} ({task.positive_name or 'mean of classes'})"


def predictions_from_logits(task: Task, logits: np.ndarray) -> np.ndarray:
    """(N, num_labels) logits to (N,) class ids (int64; the lowest on ties), (N,) scores (float32), or, for several
    labels at once, (N, num_labels) probabilities.

    Raises:
        UserError: another number of columns than the task has labels.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] != task.num_labels:
        raise UserError(f"logits {logits.shape} where task {task.name} needs (N, {task.num_labels})")
    return task.kind.predictions(logits)


def prediction_entropy(logits: np.ndarray) -> float | None:
    """Mean entropy of softmax(logits), (N, C), in nats: 0 is certain, log C is undecided; None for one column."""
    logits = np.asarray(logits, dtype=np.float64)
    if logits.shape[1] == 1:
        return None
    log_probabilities = log_softmax(logits, axis=1)
    return float(-(np.exp(log_probabilities) * log_probabilities).sum(axis=1).mean())


def collapsed_to_one_class(predictions: np.ndarray, num_labels: int) -> int | None:
    """The class that all of two or more predictions have; None if they differ, and for regression."""
    predictions = np.asarray(predictions)
    if num_labels < 2 or len(predictions) < 2 or np.any(predictions != predictions[0]):
        return None
    return int(predictions[0])


def _acc(task: Task, predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(accuracy_score(labels, predictions))


def _f1(task: Task, predictions: np.ndarray, labels: np.ndarray) -> float:
    if task.num_labels != 2:
        return float(f1_score(labels, predictions, average="macro", zero_division=0.0))
    positive = task.labels.index(task.positive_label)
    return float(f1_score(labels, predictions, pos_label=positive, zero_division=0.0))


def _acc_and_f1(task: Task, predictions: np.ndarray, labels: np.ndarray) -> float:
    return (_acc(task, predictions, labels) + _f1(task, predictions, labels)) / 2


def _mcc(task: Task, predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(matthews_corrcoef(labels, predictions))


_SCORES = {"acc": _acc, "f1": _f1, "acc_and_f1": _acc_and_f1, "mcc": _mcc}


def class_shares(task: Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """What accuracy hides if one class has most of the rows; empty for other rows, and other kinds of task.

    Returns:
        `balanced_acc`, the mean over classes of the share that is found, and `macro_f1`, the mean F1 of classes.
    """
    if task.num_labels < 2 or labels.ndim != 1 or np.bincount(labels).max() < MOSTLY_ONE * len(labels):
        return {}
    recalls = [float((predictions[labels == each] == each).mean()) for each in np.unique(labels)]
    macro = f1_score(labels, predictions, average="macro", zero_division=0.0)
    return {"balanced_acc": float(np.mean(recalls)), "macro_f1": float(macro)}


def always_the_same(task: Task, known: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of the best constant answer: what a model that reads nothing reaches.

    Args:
        known: labels of the rows that it is chosen by: the mean of scores, the largest class, or the most frequent
            labels.
        labels: of the rows that are evaluated.

    Returns:
        `rmse` and `mae` of scores; `acc` of classes; `micro_f1` of several labels.
    """
    return task.kind.always_the_same(np.asarray(known), np.asarray(labels))


def of_scores(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Correlations, and errors in the unit of the labels."""
    predictions, labels = predictions.astype(np.float64), labels.astype(np.float64)
    if not (np.isfinite(predictions).all() and np.isfinite(labels).all()):
        raise UserError("predictions or labels hold NaN or infinity")
    return correlations(predictions, labels) | errors(predictions, labels)


def errors(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Root of the mean squared error, and mean absolute error."""
    far = predictions - labels
    return {"rmse": float(np.sqrt((far**2).mean())), "mae": float(np.abs(far).mean())}


def correlations(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation of two (N,) arrays, and their mean `corr`; 0 if one is constant."""
    for name, values in (("predictions", predictions), ("labels", labels)):
        if np.ptp(values) == 0:
            logger.warning(
                "All %d %s are %g: the correlation is not defined, 0 is reported", len(values), name, values[0]
            )
            return {"pearson": 0.0, "spearmanr": 0.0, "corr": 0.0}
    pearson = float(pearsonr(predictions, labels).statistic)
    spearman = float(spearmanr(predictions, labels).statistic)
    return {"pearson": pearson, "spearmanr": spearman, "corr": (pearson + spearman) / 2}


def ranking_figures(dense: np.ndarray, pruned: np.ndarray, groups: np.ndarray | None = None) -> dict[str, float]:
    """How well a model keeps the order in which another one puts texts.

    Args:
        dense, pruned: (N,) scores.
        groups: (N,) number of the query of each text. Orders are then compared inside each query of two or more texts.

    Returns:
        `Kendall's tau`; with such groups the mean over queries, `first place kept`, the share of queries whose best
        text stays, and `nDCG@10`, where the text that `dense` puts in place r, from 1, has the relevance
        max(0, 11 - r).
    """
    numbers = () if groups is None else np.unique(groups)
    members = [rows for number in numbers if len(rows := np.flatnonzero(groups == number)) > 1]
    if not members:
        return {"Kendall's tau": _tau(dense, pruned)}
    pairs = [(dense[rows], pruned[rows]) for rows in members]
    return {
        "first place kept": float(np.mean([first.argmax() == second.argmax() for first, second in pairs])),
        "nDCG@10": float(np.mean([_ndcg(first, second) for first, second in pairs])),
        "Kendall's tau": float(np.mean([_tau(first, second) for first, second in pairs])),
    }


def mean_average_precision(relevant: list[np.ndarray]) -> tuple[float, float]:
    """MAP and MRR of queries: for each the (n,) relevance, 0 or 1, of its texts in the order of the answer.

    Queries without both a relevant and another text do not count.
    """
    precisions, reciprocals = [], []
    for each in relevant:
        places = np.flatnonzero(each) + 1
        if 0 < len(places) < len(each):
            precisions.append(float(np.mean(np.arange(1, len(places) + 1) / places)))
            reciprocals.append(1 / int(places[0]))
    return float(np.mean(precisions)), float(np.mean(reciprocals))


def _tau(first: np.ndarray, second: np.ndarray) -> float:
    found = float(kendalltau(first, second).statistic) if len(first) > 1 else 1.0
    return found if np.isfinite(found) else 0.0


def _ndcg(dense: np.ndarray, pruned: np.ndarray, most: int = 10) -> float:
    order = np.argsort(-dense, kind="stable")
    gains = np.zeros(len(dense))
    gains[order[:most]] = np.arange(most, 0, -1)[: len(dense)]
    discounts = 1 / np.log2(np.arange(2, most + 2))[: len(dense)]
    found = gains[np.argsort(-pruned, kind="stable")[:most]] @ discounts
    return float(found / (gains[order[:most]] @ discounts))
