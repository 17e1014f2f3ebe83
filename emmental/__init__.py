"""Pruning of BERT-like encoders: masked models, their training, and what comes out of it."""

from __future__ import annotations

import sys
from typing import Any

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


def register() -> None:
    """Tell the Auto classes of Transformers about masked and small models.

    Importing emmental does it. The command lines are the exception: they answer `--help` and mistakes in flags before
    they load PyTorch, and call this after.
    """
    from emmental import masked_models, small_models  # noqa: F401 - importing them registers


if not getattr(sys.modules["__main__"], "READS_FLAGS_FIRST", False):
    register()


def __getattr__(name: str) -> Any:
    """`prune`, `MaskedRobertaModel`, `SmallRobertaModel` and their like for every type, when first asked for."""
    if name == "prune":
        from emmental.structured.prune import prune

        return prune
    if name.startswith("Masked"):
        from emmental import masked_models

        return getattr(masked_models, name)
    if name.startswith("Small"):
        from emmental import small_models

        return getattr(small_models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
