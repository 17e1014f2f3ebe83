"""Tiny classifiers that have learnt something, and texts for cascades of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_cascade import built, rows, trained_models


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """A dense model, a smaller one with its classes in the other order."""
    return trained_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [text for text, _ in rows(600, seed=2)]


@pytest.fixture(scope="session")
def labels() -> list[str]:
    return [label for _, label in rows(600, seed=2)]


@pytest.fixture(scope="session")
def served(models, texts, labels, tmp_path_factory) -> Path:
    """A cascade of a bag of words, the small model and the dense one, in ONNX Runtime."""
    from emmental.cascade import Rows

    train_texts, train_labels = zip(*rows(40, seed=1), strict=True)
    folder = tmp_path_factory.mktemp("cascade") / "served"
    stages, training = [models["small"], models["dense"]], Rows(train_texts, train_labels)
    built(stages, texts, folder, labels=labels, training=training, milliseconds=[1, 3, 30])
    return folder
