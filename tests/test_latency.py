"""Timing: who runs when, what a row says, and ratios by hand."""

from __future__ import annotations

import pytest
import tiny_models
import torch

from emmental import latency
from emmental.latency import Latency, forward_times, machine, measure, random_batch, speedups


def test_models_take_turns_on_the_same_tokens():
    calls, seen = [], []

    def runner(name):
        def run(ids, mask, types):
            calls.append(name)
            seen.append((ids.clone(), mask.clone(), types.clone(), torch.get_num_threads()))

        return run

    before = torch.get_num_threads()
    rows = measure({"a": runner("a"), "b": runner("b")}, 2, 3, 2, 50, seconds=0)
    assert calls == ["a"] * 4 + ["b"] * 4 + ["a"] * 4 + ["b"] * 4
    assert [(row.model, row.batch, row.length, row.threads, row.calls) for row in rows] == [
        ("a", 2, 3, 2, 6),
        ("b", 2, 3, 2, 6),
    ]
    for ids, mask, types, threads in seen:
        assert torch.equal(ids, seen[0][0])
        assert ids.shape == (2, 3)
        assert mask.all()
        assert not types.any()
        assert threads == 2
    assert torch.get_num_threads() == before
    assert all(0 <= row.low_ms <= row.median_ms <= row.high_ms for row in rows)


def test_untimed_call_before_each_turn(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    (row,) = measure({"a": lambda *inputs: None}, 1, 1, 1, 9, seconds=0)
    assert (row.median_ms, row.low_ms, row.high_ms, row.calls) == (1000.0, 1000.0, 1000.0, 6)


def test_quartiles_by_hand():
    row = latency._summary("a", 1, 2, 3, [0.001, 0.002, 0.003, 0.004, 0.1])
    assert row == Latency("a", 1, 2, 3, pytest.approx(3.0), pytest.approx(2.0), pytest.approx(4.0), 5)


def test_turns_end():
    calls = []
    measure({"a": lambda *inputs: calls.append(1)}, 1, 1, 1, 9, seconds=1000, most_turns=3)
    assert len(calls) == 12


def test_models_are_timed_without_dropout_and_with_their_own_inputs():
    """DistilBERT takes no token types; a model of eight layers takes longer than one of one layer."""
    models = [tiny_models.model("distilbert", num_hidden_layers=layers).train() for layers in (1, 8)]
    short, long = forward_times(models, 1, 16)
    assert 0 < short < long


def test_random_batch_repeats():
    ids, mask, types = random_batch(2, 5, 7)
    assert ids.max() < 7
    assert torch.equal(ids, random_batch(2, 5, 7)[0])
    assert not torch.equal(ids, random_batch(2, 5, 7, seed=1)[0])
    assert (mask.dtype, types.dtype) == (torch.int64, torch.int64)


def test_speedups_by_hand():
    def row(model, length, median):
        return Latency(model, 1, length, 2, median, median, median, 3)

    rows = [row("dense", 32, 60.0), row("sparse", 32, 15.0), row("sparse", 64, 20.0)]
    assert speedups(rows) == {("dense", 1, 32, 2): 1.0, ("sparse", 1, 32, 2): 4.0}
    assert speedups(rows, "sparse")["dense", 1, 32, 2] == 0.25


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"length": 0}, {"threads": 0}, {"vocab_size": 0}, {"models": {}}])
def test_numbers_below_one(wrong):
    right = {"models": {"a": print}, "batch": 1, "length": 1, "threads": 1, "vocab_size": 9}
    with pytest.raises(ValueError, match="from 1, models at least one"):
        measure(**{**right, **wrong})


def test_machine_says_where():
    assert {"processor", "cores", "torch"} <= machine().keys()
    assert machine()["torch"] == torch.__version__
