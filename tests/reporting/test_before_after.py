"""Models are timed in the engine asked for."""

from __future__ import annotations

import pytest
import tiny_models

from emmental.reporting import before_after


def test_models_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(before_after, "_SECONDS_OF_MANY", 0.05)
    models = [tiny_models.model("bert", num_hidden_layers=layers) for layers in (1, 8)]
    short, long = before_after.timed_in("torch")(models, 1, 16)
    assert 0 < short < long
