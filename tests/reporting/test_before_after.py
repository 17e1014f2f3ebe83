"""Models are timed in the engine asked for."""

from __future__ import annotations

import pytest
import tiny_models

from emmental.reporting import before_after
from emmental.reporting.before_after import Candidate, before_and_after


def test_models_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(before_after, "_SECONDS_OF_MANY", 0.05)
    models = [tiny_models.model("bert", num_hidden_layers=layers) for layers in (1, 8)]
    short, long = before_after.timed_in("torch")(models, 1, 16)
    assert 0 < short < long


def test_a_small_model_is_compared_with_its_original_too() -> None:
    """250 of 1,000 weights were left before, and now 100 are."""
    rows = [Candidate("dense", 0.9, 250_000, original=1_000_000), Candidate("40.0% kept", 0.8, 100_000)]
    _, first, last = before_and_after(rows, "acc")
    assert " 0.25 M (25.0 % of the original)  " in first
    assert " 0.10 M (40.0 %, 10.0 % of the original)  " in last
    whole = [Candidate("dense", 0.9, 1_000_000), Candidate("25.0% kept", 0.8, 250_000, original=1_000_000)]
    assert " 0.25 M (25.0 %)  " in before_and_after(whole, "acc")[2]
