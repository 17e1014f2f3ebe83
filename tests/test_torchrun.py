"""Two processes on gloo: the results of one process at the same global batch, one writer, and no stranded rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import tiny
from safetensors.torch import load_file

import masked_run_glue

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    tiny.write_task(folder / "mrpc", "mrpc", train=29, dev=11)
    tiny.save_bert(folder / "bert")
    return folder


def flags(world: Path, output: Path, processes: int, *others: str) -> list[str]:
    return [
        *("--data_dir", str(world / "mrpc"), "--task_name", "mrpc", "--model_name_or_path", str(world / "bert")),
        *("--output_dir", str(output), "--feature_cache_dir", str(output / "cache"), "--max_seq_length", "32"),
        *("--max_steps", "9", "--warmup_steps", "1", "--save_steps", "4", "--logging_steps", "2", "--no-pictures"),
        *("--recipe", "paper", "--learning_rate", "1e-3", "--no_cuda", "--mask_init", "kaiming"),
        # A large epsilon: Adam's first steps otherwise are the sign of gradients that rounding alone decides.
        *("--gradient_accumulation_steps", "2", "--adam_epsilon", "1e-3"),
        *("--per_gpu_train_batch_size", str(8 // processes), "--evaluate_during_training", *others),
    ]


def launch(world: Path, output: Path, *others: str) -> subprocess.CompletedProcess:
    """Two processes under torchrun."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(ROOT / "masked_run_glue.py"), *flags(world, output, 2, *others)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=240, check=False)


def fork(world: Path, output: Path, processes: int, *others: str) -> str:
    """One or two processes, without imports to wait for; what they printed."""
    log = output.with_suffix(".txt")
    before = forked.as_two_ranks() if processes == 2 else lambda: None
    assert forked.run(masked_run_glue.main, flags(world, output, processes, *others), log, before) == 0, (
        log.read_text()
    )
    return log.read_text()


@pytest.mark.parametrize("method", ["topK", "fisher"])
def test_two_processes_equal_one_at_the_same_global_batch(world: Path, tmp_path: Path, method: str) -> None:
    fork(world, tmp_path / "one", 1, "--pruning_method", method)
    if method == "fisher":
        said = fork(world, tmp_path / "two", 2, "--pruning_method", method)
    else:
        two = launch(world, tmp_path / "two", "--pruning_method", method)
        assert two.returncode == 0, two.stderr
        said = two.stdout
    alone, together = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert max((alone[name] - together[name]).abs().max() for name in alone) < 1e-5
    rows = [[json.loads(line) for line in (tmp_path / name / "train_log.jsonl").open()] for name in ("one", "two")]
    for first, second in zip(*rows, strict=True):
        assert first.get("eval", {}).get("acc") == second.get("eval", {}).get("acc")
        if "loss" in first:
            assert second["loss"] == pytest.approx(first["loss"], abs=1e-5)
            assert second["gradient_norms"]["weights"] == pytest.approx(first["gradient_norms"]["weights"], rel=1e-3)
    results = [json.loads((tmp_path / name / "eval_results.json").read_text()) for name in ("one", "two")]
    assert results[0]["acc"] == results[1]["acc"]
    assert results[0]["f1"] == results[1]["f1"]
    assert said.count("remaining weights") == 1
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


def test_an_error_in_rank_0_strands_nobody(world: Path, tmp_path: Path) -> None:
    (tmp_path / "mrpc").mkdir()
    (tmp_path / "mrpc" / "train.tsv").write_text("not\ta\ttask\n")
    (tmp_path / "mrpc" / "dev.tsv").write_text("not\ta\ttask\n")
    started = time.monotonic()
    result = launch(world, tmp_path / "out", "--data_dir", str(tmp_path / "mrpc"))
    assert result.returncode != 0
    assert "dev.tsv" in result.stderr
    assert time.monotonic() - started < 60
