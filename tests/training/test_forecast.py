"""What a run will need, against numbers worked out by hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from emmental.training.arguments import parse_arguments
from emmental.training.facts import DataFacts, TokenFacts
from emmental.training.forecast import disk_forecast, disk_needed, work_after
from emmental.training.route import route

WEIGHTS, ENCODER, EMBEDDINGS = 1000, 600, 300
KEPT = 3
"""Two checkpoints and the one being written."""


def facts(examples: int, outputs: int = 2) -> DataFacts:
    """Of a model with these numbers, and rows of 50 tokens."""
    sizes = {"weights": WEIGHTS, "encoder_weights": ENCODER, "embedding_weights": EMBEDDINGS}
    return DataFacts(
        examples, 16, rows=examples, mean_length=50.0, outputs=outputs, model_type="bert", memory=10**12, **sizes
    )


def disk(*given: str, kept: int = KEPT) -> tuple[int, int]:
    known = facts(64)
    return disk_needed(phases(known, *given), known, None, kept)


def phases(known: DataFacts, *given: str):
    return route(parse_arguments(["--data_dir", "glue", "--task_name", "sst-2", "--output_dir", "out", *given]), known)


def test_a_dense_training_keeps_two_checkpoints_and_writes_a_third():
    total, checkpoint = disk("--recipe", "paper", "--model_type", "bert")
    assert checkpoint == 12 * WEIGHTS
    assert total == 3 * 12 * WEIGHTS + 4 * WEIGHTS


def test_a_masked_training_has_scores_and_frozen_embeddings():
    total, checkpoint = disk("--recipe", "paper", "--max_steps", "8")
    assert checkpoint == 4 * (WEIGHTS + ENCODER) + 8 * (WEIGHTS + ENCODER - EMBEDDINGS)
    assert total == checkpoint + 4 * (WEIGHTS + ENCODER)  # 64 rows in batches of 8: one checkpoint in 8 updates


def test_the_plain_command_trains_twice_and_keeps_what_it_cut():
    small = WEIGHTS - int(ENCODER * 0.75)
    assert disk() == (3 * 12 * WEIGHTS + 4 * WEIGHTS + 4 * small + 3 * 12 * small + 4 * small, 12 * WEIGHTS)


def test_fewer_tokens_make_smaller_files():
    """A third of the tokens stays: 200 of 300 numbers go from every file after the dense model's."""
    known = replace(facts(64), tokens=TokenFacts(90, 10))
    small = WEIGHTS - int(ENCODER * 0.75) - 200
    total, checkpoint = disk_needed(phases(known, "--vocabulary", "30"), known, None, KEPT)
    reduced = 4 * (WEIGHTS - 200)
    assert total == 3 * 12 * WEIGHTS + 4 * WEIGHTS + reduced + 4 * small + 3 * 12 * small + 4 * small
    assert checkpoint == 12 * WEIGHTS
    masked = phases(known, "--vocabulary", "30", "--pruning_method", "topK")[-1]
    assert masked.checkpoint_bytes(known) == 4 * (WEIGHTS - 200 + ENCODER) + 8 * (WEIGHTS - 300 + ENCODER)


def test_cutting_alone_writes_no_checkpoint_of_its_own():
    total, checkpoint = disk("--num_train_epochs", "0", "--no-dense_first")
    assert (total, checkpoint) == (2 * 4 * (WEIGHTS - int(ENCODER * 0.75)), 0)


def test_a_small_disk_is_warned_of_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    usage, said, known = type(shutil.disk_usage("/")), [], facts(64)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1_000))
    monkeypatch.setattr("emmental.training.forecast.logger.warning", lambda text, *values: said.append(text % values))
    assert "of which" in disk_forecast(phases(known), known, Path("out"), None, KEPT)
    assert "0 MB are free: give another --output_dir, or a smaller --save_total_limit" in said[0]


def work(*given: str, classes: int = 2) -> list[float]:
    """Updates that each phase is told of; a cut makes none of its own."""
    known = facts(2000, classes)
    return work_after(phases(known, *given), known)


def test_the_dense_training_knows_what_follows():
    """A rung has 1,024 rows of information and 1,200 of refit; 90 updates of 32 rows: more than an epoch."""
    cut, teacher = 3 * (1024 + 1.4 * 1200) / 32, 2000 / 32 / 3
    assert work("--max_steps", "90")[::2] == pytest.approx([cut + 90 * 0.4 + teacher, 0])
    six = 3 * (1024 * 11 / 3 + 1.4 * 1200) / 32
    assert work("--max_steps", "90", classes=6)[::2] == pytest.approx([six + 90 * 0.4 + teacher, 0])
    assert work("--num_train_epochs", "0") == pytest.approx([cut, 0])
    fast = work("--max_steps", "30", "--speedup", "2", "--speedup_length", "16")
    assert fast[::2] == pytest.approx([cut + 30 * 0.6 + 10, 0])


def test_a_training_of_a_ladder_knows_the_shares_after_it():
    """Its own updates are those of a model with half of the encoder."""
    cut = 3 * (1024 + 1.4 * 1200) / 32
    second = cut + 30 * 0.4
    ladder = work("--max_steps", "30", "--keep", "0.5", "0.25")
    assert ladder[::2] == pytest.approx([cut + 30 * 0.6 + second + 10, second / 0.6, 0])


def test_masks_cost_time_too():
    cut = 3 * (1024 + 1.4 * 1200) / 32
    assert work("--max_steps", "30", "--granularity", "unstructured")[::2] == pytest.approx([cut + 30 * 1.1 + 10, 0])
    assert work("--max_steps", "30", "--pruning_method", "topK") == pytest.approx([30 * 1.1 + 10, 0])
