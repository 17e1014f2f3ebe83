"""Batches of invented sentences for tiny models."""

from __future__ import annotations

import random

import tiny
import tiny_models
from torch import Tensor

from emmental.structured.texts import padded_batches


def batches(model_type: str, count: int = 12, size: int = 4, labels: bool = False) -> list[dict[str, Tensor]]:
    """Invented sentences of three to eight words."""
    generator = random.Random(0)
    tokenizer = tiny_models.tokenizer(model_type)
    encodings = [tokenizer(tiny.sentence(generator, row % 2)) for row in range(count)]
    answers = [row % 3 for row in range(count)] if labels else None
    return padded_batches(tokenizer, encodings, range(count), size, answers)
