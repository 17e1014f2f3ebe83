"""Kinds of task, a class each: what a model answers, its metrics, its constant answer, its bag of words, its words.

`Task.kind` is one of them. Nothing else asks which kind a task is of, if one of their methods can answer.
"""

from __future__ import annotations

from typing import Any

from emmental.tasks.kinds.classes import OneClass
from emmental.tasks.kinds.kind import Kind, SameAnswer
from emmental.tasks.kinds.scores import Score
from emmental.tasks.kinds.several import SeveralLabels

__all__ = ["CLASSES", "SCORES", "SEVERAL", "Kind", "SameAnswer", "kind_of_model"]

CLASSES, SCORES, SEVERAL = OneClass(), Score(), SeveralLabels()


def kind_of_model(config: Any) -> Kind:
    """The kind of task that a sequence classifier with this configuration was trained for."""
    if getattr(config, "problem_type", None) == SEVERAL.problem_type:
        return SEVERAL
    return SCORES if config.num_labels == 1 else CLASSES
