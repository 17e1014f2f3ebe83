"""Prunes BERT-like encoders: masked models, their training, and smaller models made from them."""

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
    """Register masked and small models with the Auto classes of Transformers.

    `import emmental` calls it. The programs are the exception: they answer `--help` and mistakes in flags before they
    load PyTorch, and call this later.
    """
    from emmental import masked_models, small_models  # noqa: F401 - importing them registers


if not getattr(sys.modules["__main__"], "READS_FLAGS_FIRST", False):
    register()


def __getattr__(name: str) -> Any:
    """`prune`, and `MaskedRobertaModel`, `SmallRobertaModel` and so on for every type, made at their first use."""
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
