"""What a model answers: one class a task head, for pruning without labels.

A task head says what a model's answers are, which scalars have the squared gradients that are the information of an
example, how far two models' answers are apart, and which linear is refitted last. To add one, write a class and put it
into `TASK_HEADS`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from emmental.errors import UserError
from emmental.task_heads.head import (
    GROUP,
    NOT_INPUTS,
    PAIR,
    READ,
    TEXT,
    Agreement,
    Answers,
    Figure,
    TaskHead,
    joined,
)
from emmental.task_heads.of_texts import (
    Classes,
    Embeddings,
    Pool,
    Scores,
    SeveralLabels,
    bernoulli_divergence,
    first_token,
    mean_of_tokens,
)
from emmental.task_heads.of_tokens import Spans, Tokens
from emmental.task_heads.signs import MOST_PASSES, fisher_factors, random_signs

__all__ = [
    "GROUP",
    "MOST_PASSES",
    "NOT_INPUTS",
    "PAIR",
    "READ",
    "TASK_HEADS",
    "TEXT",
    "Agreement",
    "Answers",
    "Classes",
    "Embeddings",
    "Figure",
    "Pool",
    "Scores",
    "SeveralLabels",
    "Spans",
    "TaskHead",
    "Tokens",
    "bernoulli_divergence",
    "first_token",
    "fisher_factors",
    "joined",
    "mean_of_tokens",
    "random_signs",
    "task_head",
]

TASK_HEADS: tuple[type[TaskHead], ...] = (SeveralLabels, Scores, Classes, Tokens, Spans, Embeddings)
"""The first one that accepts a model is its head."""


def task_head(model: nn.Module, called: str = "model", **options: Any) -> TaskHead:
    """The head of a model.

    Args:
        model: plain or small.
        called: the model's name for messages.
        options: of the head's class, such as `passes`.

    Raises:
        UserError: the model has none that is known.
    """
    for head in TASK_HEADS:
        if head.accepts(model):
            return head(model, **options)
    accepted = ", ".join(head.title for head in TASK_HEADS)
    raise UserError(f"{called} accepts {accepted}; it is a {type(model).__name__}")
