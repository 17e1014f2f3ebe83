"""A bag of words, fitted in seconds: the baseline that a pruned encoder must beat.

TF-IDF of words and of pieces of words, then a logistic regression (C = 10; for several labels, one against the rest
each), or ridge regression for scores.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from emmental.tasks.metrics import compute_metrics
from emmental.tasks.task import Split, Task

MOST_ROWS, MOST_CHARACTERS = 20_000, 1_500_000
"""Limits on the training rows and characters. Within them a fit takes under ten seconds on two cores."""
_ROWS_OF_ALL_FITS, _FEWEST_ROWS = 400_000, 2_000
"""Of several labels, each is a fit of its own: many labels leave fewer rows."""
_MOST_FEATURES = 60_000


@dataclass(frozen=True)
class Floor:
    """Results of a bag of words.

    Attributes:
        metrics: of the dev rows, under the task's keys.
        predictions: of the dev rows: (N,) class ids or scores, or (N, L) probabilities.
        rows: training rows it was fitted on.
        seconds: fit and prediction together.
    """

    metrics: dict[str, float]
    predictions: np.ndarray
    rows: int
    seconds: float


def bag_of_words(task: Task, train: Split, dev: Split) -> Floor:
    """Fit a bag of words on the first training rows (shuffled by a fixed seed) and evaluate it on the dev rows.

    The features of a pair are what both texts share and where they differ. Every call gives the same result.

    Args:
        task: says whether to predict classes or scores, and which metrics to compute.
        train: rows with labels. If all have one class, every prediction is that class.
        dev: rows with labels.
    """
    started = time.monotonic()
    rows = rows_within_limits(train, task.num_labels if task.several else 1)
    try:
        encode = Encoder([train.texts_a[row] for row in rows], None if train.texts_b is None else train.texts_b, rows)
    except ValueError:  # no text has a word, or there are many texts and no word is in two of them
        encode = None
    labels = np.asarray(train.labels)[rows]
    predict = None if encode is None else task.kind.fit(encode.training, labels)
    if predict is None:
        predictions = task.kind.constant(task, labels, len(dev.texts_a))
    else:
        predictions = predict(encode(dev.texts_a, dev.texts_b))
    if task.label_range is not None:
        predictions = np.clip(predictions, *task.label_range)
    metrics = compute_metrics(task, predictions, np.asarray(dev.labels))
    return Floor(metrics, predictions, len(rows), time.monotonic() - started)


class Encoder:
    """Turns texts or pairs into sparse rows. The constructor fits it on the training texts.

    Attributes:
        vectorizers: of words and pairs of neighbours, and of pieces of words.
        training: the rows that it was fitted on.
    """

    def __init__(self, texts_a: list[str], texts_b: list[str] | None, rows: np.ndarray) -> None:
        chosen_b = None if texts_b is None else [texts_b[row] for row in rows]
        settings = {"sublinear_tf": True, "min_df": 2 if len(rows) > 1000 else 1, "max_features": _MOST_FEATURES}
        self.vectorizers = [
            TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\S+", **settings),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4), **settings),
        ]
        for vectorizer in self.vectorizers:
            vectorizer.fit(texts_a if chosen_b is None else [*texts_a, *chosen_b])
        self.training = self(texts_a, chosen_b)

    def __call__(self, texts_a: list[str], texts_b: list[str] | None) -> sparse.csr_matrix:
        parts = []
        for vectorizer in self.vectorizers:
            first = vectorizer.transform(texts_a)
            if texts_b is None:
                parts.append(first)
                continue
            second = vectorizer.transform(texts_b)
            both = first.multiply(second).tocsr()
            parts += [both, abs(first - second), sparse.csr_matrix(both.sum(axis=1))]
        return sparse.hstack(parts, format="csr")


def rows_within_limits(split: Split, fits: int = 1) -> np.ndarray:
    """Positions of the rows for so many fits: a random sample, as large as the limits allow."""
    most = min(MOST_ROWS, max(_ROWS_OF_ALL_FITS // fits, _FEWEST_ROWS))
    order = np.random.default_rng(0).permutation(len(split.texts_a))[:most]
    lengths = np.array([len(split.texts_a[row]) + len(split.texts_b[row] if split.texts_b else "") for row in order])
    within = int(np.searchsorted(np.cumsum(lengths), MOST_CHARACTERS, side="right"))
    return np.sort(order[: max(within, min(len(order), 100))])
