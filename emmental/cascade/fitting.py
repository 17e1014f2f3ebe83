"""Fits the bag of words of a cascade with scikit-learn, and writes it for `emmental.cascade.words`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from emmental.atomic import write_text
from emmental.cascade.words import PIECES, WEIGHTS_FILE, WORDS, WORDS_FILE, Text
from emmental.tasks.bag_of_words import Encoder, rows_within_limits
from emmental.tasks.linear_models import classifier
from emmental.tasks.task import Split

_NEVER, _ALWAYS = -20.0, 20.0
"""Logits of a class or label without an example, and of a label that every example has."""


@dataclass(frozen=True)
class FittedWords:
    """A fitted bag of words.

    Attributes:
        encoder: makes features of texts.
        weight: (features, classes).
        bias: (classes,).
        pairs: whether texts are pairs.
        rows: number of texts that it was fitted on.
    """

    encoder: Encoder
    weight: np.ndarray
    bias: np.ndarray
    pairs: bool
    rows: int

    def logits(self, texts: Sequence[Text]) -> np.ndarray:
        """(N, classes), computed by scikit-learn."""
        return self.encoder(*_columns(texts)) @ self.weight + self.bias

    def save(self, folder: Path) -> None:
        """Write words, their weights, and nothing that runs."""
        kinds, tensors = [], {"weight": self.weight.astype(np.float32), "bias": self.bias.astype(np.float32)}
        for kind, vectorizer in zip((WORDS, PIECES), self.encoder.vectorizers, strict=True):
            kinds.append({"kind": kind, "terms": vectorizer.get_feature_names_out().tolist()})
            tensors[f"idf.{kind}"] = vectorizer.idf_.astype(np.float32)
        folder.mkdir(exist_ok=True)
        save_file(tensors, folder / WEIGHTS_FILE)
        settings = {"kinds": kinds, "pairs": self.pairs}
        write_text(folder / WORDS_FILE, json.dumps(settings, ensure_ascii=False))


def fit_bag_of_words(texts: Sequence[Text], answers: np.ndarray, classes: int) -> FittedWords | None:
    """Fit a bag of words on the first texts (shuffled by a fixed seed).

    Args:
        texts: strings or pairs.
        answers: (N,) class ids, or (N, L) bool for several labels at once.
        classes: number of classes or labels.

    Returns:
        None if all texts have one answer, or no text has a word.
    """
    texts_a, texts_b = _columns(texts)
    answers = np.asarray(answers)
    rows = rows_within_limits(Split(texts_a, texts_b, None, []), classes if answers.ndim == 2 else 1)
    try:
        encoder = Encoder([texts_a[row] for row in rows], texts_b, rows)
    except ValueError:  # no word, or none that is in two texts
        return None
    answers = answers[rows]
    if len(np.unique(answers, axis=0)) < 2:
        return None
    fit = _fit_labels if answers.ndim == 2 else _fit_classes
    weight, bias = fit(encoder.training, answers, classes)
    return FittedWords(encoder, weight, bias, texts_b is not None, len(rows))


def _fit_classes(features: np.ndarray, answers: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    model = classifier().fit(features, answers)
    weight, bias = np.zeros((features.shape[1], classes)), np.full(classes, _NEVER)
    if len(model.classes_) == 2:  # one row of weights: log odds of the second class
        bias[model.classes_] = 0.0, model.intercept_[0]
        weight[:, model.classes_[1]] = model.coef_[0]
    else:
        bias[model.classes_], weight[:, model.classes_] = model.intercept_, model.coef_.T
    return weight, bias


def _fit_labels(features: np.ndarray, answers: np.ndarray, labels: int) -> tuple[np.ndarray, np.ndarray]:
    weight, bias = np.zeros((features.shape[1], labels)), np.zeros(labels)
    for label in range(labels):
        if answers[:, label].all() or not answers[:, label].any():
            bias[label] = _ALWAYS if answers[0, label] else _NEVER
            continue
        model = classifier().fit(features, answers[:, label])
        weight[:, label], bias[label] = model.coef_[0], model.intercept_[0]
    return weight, bias


def _columns(texts: Sequence[Text]) -> tuple[list[str], list[str] | None]:
    if texts and not isinstance(texts[0], str):
        return [first for first, _ in texts], [second for _, second in texts]
    return list(texts), None
