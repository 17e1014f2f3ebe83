"""Prunes BERT-like encoders: masked models, their training, and smaller models made from them."""

from __future__ import annotations

import sys
from pathlib import Path
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


COMMANDS = {
    "emmental-train": "masked_run_glue",
    "emmental-distil": "distiller",
    "emmental-draw": "visualizing_image",
    "emmental-prune": "emmental.export.prune",
}
"""Console command -> the program that it starts."""


def is_program(name: str) -> bool:
    """Whether the module `name` was started: as a script, by `python -m`, or by its console command."""
    return name == "__main__" or COMMANDS.get(Path(sys.argv[0]).stem) == name


def register() -> None:
    """Register masked and small models with the Auto classes of Transformers.

    `import emmental` calls it. The programs are the exception: they answer `--help` and mistakes in flags before they
    load PyTorch, and call this later.
    """
    from emmental import masked_models, small_models  # noqa: F401 - importing them registers


def _register_if_possible() -> None:
    """Without PyTorch and Transformers, a cascade can still be served: `emmental.cascade.load`."""
    try:
        register()
    except ImportError as error:
        if (error.name or "torch").partition(".")[0] not in ("torch", "transformers"):
            raise


if not (getattr(sys.modules["__main__"], "READS_FLAGS_FIRST", False) or Path(sys.argv[0]).stem in COMMANDS):
    _register_if_possible()


def __getattr__(name: str) -> Any:
    """`prune`, and `MaskedRobertaModel`, `SmallRobertaModel` and so on for every type, made at their first use."""
    if name == "prune":
        from emmental.training.prune_model import prune

        return prune
    if name.startswith("Masked"):
        from emmental import masked_models

        return getattr(masked_models, name)
    if name.startswith("Small"):
        from emmental import small_models

        return getattr(small_models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
