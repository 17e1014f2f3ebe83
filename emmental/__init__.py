"""Pruning of BERT-like encoders: masked models, their training, and what comes out of it."""

from __future__ import annotations

from typing import Any

from emmental import masked_models, small_models

__version__ = "0.1.0"

__all__ = [
    "MaskedBertConfig",
    "MaskedBertForMultipleChoice",
    "MaskedBertForQuestionAnswering",
    "MaskedBertForSequenceClassification",
    "MaskedBertForTokenClassification",
    "MaskedBertModel",
    "prune",
]


def __getattr__(name: str) -> Any:
    """`prune`, `MaskedRobertaModel`, `SmallRobertaModel` and their like for every type, when first asked for."""
    if name == "prune":
        from emmental.structured.prune import prune

        return prune
    if name.startswith("Masked"):
        return getattr(masked_models, name)
    if name.startswith("Small"):
        return getattr(small_models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
