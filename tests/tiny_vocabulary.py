"""Tokenizers with some hundred tokens, trained on made-up words, and tiny models for them."""

from __future__ import annotations

import functools
import random
from typing import Any

import tiny_models
from transformers import PreTrainedModel, PreTrainedTokenizerBase

LETTERS = "abcdefghiknorst"


def texts(count: int = 200, seed: int = 0, words: int = 120) -> list[str]:
    """Texts of six words; the first words of the list are used most."""
    drawing = random.Random(0)
    known = ["".join(drawing.choice(LETTERS) for _ in range(drawing.randint(2, 7))) for _ in range(words)]
    weights = [1 / (rank + 1) for rank in range(words)]
    drawing = random.Random(seed)
    return [" ".join(drawing.choices(known, weights, k=6)) for _ in range(count)]


@functools.cache
def tokenizer(model_type: str) -> PreTrainedTokenizerBase:
    """Of the kind of a type: some 200 to 500 tokens, and all bytes where they are its alphabet."""
    made = tiny_models.tokenizer(model_type)
    byte_level = len(made) > 256
    trained = made.train_new_from_iterator(texts(), 500 if byte_level else 250)
    trained.model_max_length = tiny_models.LONGEST
    return trained


def model(model_type: str, made: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel:
    """A classifier of random weights for a tokenizer."""
    names = ("pad", "cls", "sep", "bos", "eos")
    ids = {f"{name}_token_id": getattr(made, f"{name}_token_id") for name in names}
    return tiny_models.model(model_type, **{"vocab_size": len(made), **ids, **settings})
