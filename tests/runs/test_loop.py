"""The loop around a training: what an update is the mean of, which checkpoint is the best, rows over several ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import forked
import pytest
import tiny
import torch
from safetensors.torch import load_file

import masked_run_glue
from emmental.runs.loop import is_better


def command(tmp_path: Path, output: str, *others: str) -> list[str]:
    return [
        *("--data_dir", str(tmp_path / "sst-2"), "--task_name", "sst-2", "--model_type", "bert", "--no_cuda"),
        *("--model_name_or_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / output)),
        *("--feature_cache_dir", str(tmp_path / "cache"), "--max_seq_length", "32", "--warmup_steps", "0"),
        *("--learning_rate", "1e-3", "--no-bf16", "--max_grad_norm", "0", "--adam_epsilon", "1e-2", *others),
    ]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Eleven training and nine dev rows, and a model without dropout."""
    tiny.write_task(tmp_path / "sst-2", "sst-2", train=11, dev=9)
    tiny.save_bert(tmp_path / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return tmp_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def mean_loss(folder: Path) -> float:
    return json.loads((folder / "train_log.jsonl").read_text().splitlines()[-1])["loss"]


@pytest.mark.parametrize(("size", "accumulation"), [(4, 3), (2, 6), (10, 2)])
def test_an_update_is_the_mean_over_its_rows(world: Path, size: int, accumulation: int) -> None:
    """Micro-batches of 4, 4 and 3 rows, or of 10 and 1: each row counts 1/11, as in one batch of eleven."""
    split = ("--per_gpu_train_batch_size", str(size), "--gradient_accumulation_steps", str(accumulation))
    flags = ("--do_train", "--max_steps", "2", "--logging_steps", "1")
    masked_run_glue.main(command(world, "whole", "--per_gpu_train_batch_size", "11", *flags))
    masked_run_glue.main(command(world, "split", *split, *flags))
    whole, parts = weights(world / "whole"), weights(world / "split")
    start = weights(world / "model")
    assert max(float((whole[name] - start[name]).abs().max()) for name in start if name in whole) > 1e-4
    for name, value in whole.items():
        assert torch.allclose(parts[name], value, atol=2e-6), name
    assert mean_loss(world / "split") == pytest.approx(mean_loss(world / "whole"), abs=1e-5)


def test_two_ranks_evaluate_every_row_once(world: Path) -> None:
    """Nine rows in batches of two over two ranks: three rows of weight 0 fill the last batch and do not count."""
    flags = ("--do_train", "--do_eval", "--max_steps", "2")
    alone = masked_run_glue.main(command(world, "out", *flags))
    again = command(world, "two", "--do_eval", "--per_gpu_eval_batch_size", "2")
    again[again.index("--model_name_or_path") + 1] = str(world / "out")
    assert forked.run(masked_run_glue.main, again, world / "log", forked.as_two_ranks()) == 0
    together = json.loads((world / "two" / "eval_results.json").read_text())
    for name in ("acc", "entropy"):
        assert together[name] == pytest.approx(alone[name], abs=1e-6)
    assert (9 * together["acc"]) == pytest.approx(round(9 * together["acc"]))


def test_nan_is_never_the_best() -> None:
    assert is_better(0.1, None)
    assert is_better(0.2, 0.1)
    assert not is_better(0.1, 0.1)
    assert not is_better(math.nan, None)
    assert not is_better(math.nan, 0.1)
    assert is_better(0.1, math.nan)  # an earlier version may have recorded it
