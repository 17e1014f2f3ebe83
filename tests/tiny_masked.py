"""Small masked BERTs with every head and method, their scores spread so that masks are neither full nor empty."""

from __future__ import annotations

from pathlib import Path

import tiny
import torch

import emmental
from emmental.methods import PRUNING_METHODS
from emmental.patching import masked_layers, set_threshold

HEADS = tuple(name for name in emmental.__all__ if name.startswith("MaskedBert") and name != "MaskedBertConfig")
THRESHOLDS = dict.fromkeys(PRUNING_METHODS, 0.25) | {"threshold": 0.3, "sigmoied_threshold": 0.6, "l0": None}
SIZES = {
    "vocab_size": len(tiny.SPECIAL) + len(tiny.WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
}


def make(head: str = "MaskedBertForSequenceClassification", method: str = "topK", **config: object):
    """A masked model in evaluation mode with standard normal scores; `l0`: times 3, so that gates close."""
    torch.manual_seed(0)
    settings = {**SIZES, "pruning_method": method, "threshold": THRESHOLDS[method], **config}
    model = getattr(emmental, head)(emmental.MaskedBertConfig(**settings)).eval()
    with torch.no_grad():
        for layer in masked_layers(model).values():
            if layer.mask_scores is not None:
                layer.mask_scores.normal_(std=3.0 if method == "l0" else 1.0)
    set_threshold(model, model.config.threshold, model.config.global_boundary)
    return model


def save(folder: Path, *args: object, **config: object):
    """`make`, saved with the tokenizer; returns the model."""
    model = make(*args, **config)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return model


@torch.no_grad()
def outputs(model: torch.nn.Module) -> list[torch.Tensor]:
    """What the model answers to two rows (multiple choice: one row of two), one of them padded."""
    ids = torch.tensor([[2, 5, 9, 17, 30, 3], [2, 7, 8, 3, 0, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    if "MultipleChoice" in type(model).__name__:
        inputs = {name: value[None] for name, value in inputs.items()}
    return [value for value in model.eval()(**inputs).to_tuple() if isinstance(value, torch.Tensor)]
