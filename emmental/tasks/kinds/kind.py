"""What all kinds of task can be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from emmental.tasks.task import Task

Metrics = dict[str, float]


@dataclass(frozen=True)
class SameAnswer:
    """The answer that a model gives to every row.

    Attributes:
        text: with its noun, such as `class 'no'`.
        share: of the labelled rows that have it.
        if_common: what to say if most rows have it.
    """

    text: str
    share: float
    if_common: str


class Kind(ABC):
    """A kind of task.

    Labels are (N,) class ids, (N,) scores, or (N, L) 0 and 1. Predictions are (N,) class ids, (N,) scores, or (N, L)
    probabilities. Logits are (N, C).

    Attributes:
        problem_type: in the configuration of a model.
        noun: what a model is, for people.
        asked: what a task of this kind asks for, for messages.
        metric_names: of own files.
        primary: the one of them that ranks models.
        label_dtype: of the labels in memory.
        constant_title: name of the best constant answer in tables.
        note: a sentence for the model card.
        has_scores: its labels are numbers, and its metrics have their unit.
    """

    problem_type: ClassVar[str]
    noun: ClassVar[str] = "classifier"
    asked: ClassVar[str]
    metric_names: ClassVar[tuple[str, ...]]
    primary: ClassVar[str]
    label_dtype: ClassVar[type] = np.float32
    constant_title: ClassVar[str]
    note: ClassVar[str] = ""
    has_scores: ClassVar[bool] = False

    def settings(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Settings of a model's configuration."""
        labels = dict(enumerate(names))
        return {
            "id2label": labels,
            "label2id": {label: index for index, label in labels.items()},
            "problem_type": self.problem_type,
        }

    @abstractmethod
    def predictions(self, logits: np.ndarray) -> np.ndarray:
        """Predictions from logits."""

    @abstractmethod
    def metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> Metrics:
        """A value for every name in `task.metrics`."""

    def more_metrics(self, task: Task, predictions: np.ndarray, labels: np.ndarray) -> Metrics:
        """What the metrics of own files hide; empty if they hide nothing."""
        return {}

    def entropy(self, logits: np.ndarray) -> float | None:
        """How undecided the answers are, in nats: 0 is certain; None for scores."""
        return None

    @abstractmethod
    def always_the_same(self, known: np.ndarray, labels: np.ndarray) -> Metrics:
        """Metrics of the best constant answer to rows with these `labels`; it is chosen by the labels `known`."""

    def shows_constant(self, constant: Metrics) -> bool:
        """Whether a table shows what `always_the_same` reaches."""
        return True

    @abstractmethod
    def beats_constant(self, logits: np.ndarray, labels: np.ndarray) -> bool:
        """Whether answers are better than the best constant answer to the same rows."""

    def collapsed(self, task: Task, predictions: np.ndarray) -> int | np.ndarray | None:
        """The answer that two or more rows all get, a class id or (L,) bool; None if they differ, and for scores."""
        return None

    def same_answer(self, task: Task, answer: Any, labels: np.ndarray | None) -> SameAnswer:
        """About an answer of `collapsed`; `labels`: of the rows, if they are known."""
        raise NotImplementedError

    def same_label(self, task: Task, labels: np.ndarray) -> str | None:
        """What all rows have, if they have the same; None if they differ, and for scores."""
        return None

    @abstractmethod
    def spelled(self, task: Task, predictions: np.ndarray) -> list[str]:
        """Predictions as a file of predictions has them."""

    def names_of(self, task: Task, labels: np.ndarray) -> list[Any]:
        """The name of each row's class, or the list of the names of its labels."""
        raise NotImplementedError

    def probabilities(self, logits: np.ndarray) -> np.ndarray | None:
        """(N, C) float64; None for scores."""
        return None

    def agreement(self, logits: np.ndarray, others: np.ndarray) -> float | None:
        """Share of rows to which two models give the same answer; None for scores."""
        return None

    @abstractmethod
    def constant(self, task: Task, labels: np.ndarray, rows: int) -> np.ndarray:
        """The same prediction for so many rows, chosen by the labels."""

    @abstractmethod
    def fit(self, features: Any, labels: np.ndarray) -> Callable[[Any], np.ndarray] | None:
        """Fit a linear model on sparse features (N, F). Returns features -> predictions; None: nothing to learn."""

    @abstractmethod
    def describe(self, task: Task) -> str:
        """The task in some words."""

    @abstractmethod
    def describe_labels(self, task: Task, labels: np.ndarray) -> str:
        """What follows the number of rows in the description of a file; begins with its punctuation."""

    def never_seen(self, task: Task, labels: np.ndarray) -> list[str]:
        """Names of classes or labels that no row has."""
        return []
