"""Tiny classifiers that have learnt something, and cascades of them whose stages take given times."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import BertForSequenceClassification

from emmental.cascade import building, models

NAMES = ("negative", "positive")


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """(text, label): sentences with two words of their class."""
    draw = random.Random(seed)
    return [(tiny.sentence(draw, index % 2), NAMES[index % 2]) for index in range(count)]


def teach(folder: Path, steps: int, names: tuple[str, ...] = NAMES, **config: object) -> Path:
    """A tiny BERT after some updates on sentences; `names` in the order of its outputs."""
    tiny.save_bert(folder, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}, **config)
    model, tokenizer = BertForSequenceClassification.from_pretrained(folder), tiny.tokenizer()
    texts, labels = zip(*rows(400, seed=1), strict=True)
    inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
    wanted = torch.tensor([names.index(label) for label in labels])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**inputs, labels=wanted).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def trained_models(place: Path) -> dict[str, Path]:
    """A dense model, and a smaller one with its classes in the other order."""
    return {
        "small": teach(place / "small", 25, names=NAMES[::-1], num_hidden_layers=1, intermediate_size=8),
        "dense": teach(place / "dense", 60),
    }


def built(
    stages: Sequence[Path], texts: Sequence[Any], output: Path, milliseconds: Sequence[float] = (3, 30), **given
):
    """The record of a cascade in ONNX Runtime with one thread, whose stages take these times on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "milliseconds", lambda stages, *_: list(milliseconds))
        patch.setattr(models, "milliseconds", lambda stages, *_: list(range(len(stages), 0, -1)))
        return building.build_cascade(
            stages, texts, output, **{"engine": "onnx", "threads": 1, "changed": 0.05, **given}
        )
