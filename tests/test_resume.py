"""Kill the trainer anywhere, start the same command again: the same bits come out."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import forked
import pytest
import tiny

import masked_run_glue
from distiller import TaskDistiller

CASES = {
    "movement": [],
    "accumulation": ["--gradient_accumulation_steps", "2", "--num_train_epochs", "4.5"],
    "global_topk": ["--global_topk", "--global_topk_frequency_compute", "3", "--mask_init", "kaiming"],
    "l0": ["--pruning_method", "l0", "--regularization", "l0", "--final_lambda", "10", "--mask_scale", "2.197"],
    "dense_dropout": ["--model_type", "bert"],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny.write_task(folder / "mrpc", "mrpc", train=30)
    tiny.save_bert(folder / "bert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    return folder


def command(world: Path, output: Path, case: str) -> list[str]:
    return [
        *("--data_dir", str(world / "mrpc"), "--task_name", "mrpc", "--model_name_or_path", str(world / "bert")),
        *("--output_dir", str(output), "--feature_cache_dir", str(world / "features"), "--max_seq_length", "32"),
        *("--per_gpu_train_batch_size", "4", "--num_train_epochs", "2", "--learning_rate", "1e-3"),
        *("--warmup_steps", "2", "--logging_steps", "3", "--save_steps", "4", "--no-pictures", "--no_cuda"),
        *("--evaluate_during_training", "--mask_scores_learning_rate", "0.05", "--final_threshold", "0.3"),
        *CASES[case],
    ]


def results_of(output: Path) -> dict[str, bytes]:
    """Every file a run leaves that must not depend on interruptions: model, optimizer, random states, log, metrics."""
    last = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    names = ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "training_state.json")
    files = {f"checkpoint/{name}": last / name for name in names}
    files |= {name: output / name for name in ("model.safetensors", "train_log.jsonl", "eval_results.json")}
    return {name: path.read_bytes() for name, path in files.items()}


def run_to_the_end(world: Path, output: Path, case: str) -> None:
    output.parent.mkdir(exist_ok=True)
    status = forked.run(masked_run_glue.main, command(world, output, case), output.parent / "log.txt", lambda: None)
    assert status == 0, (output.parent / "log.txt").read_text()


@pytest.fixture(scope="module")
def uninterrupted(world: Path) -> dict[str, dict[str, bytes]]:
    results = {}
    for case in CASES:
        run_to_the_end(world, world / "uninterrupted" / case, case)
        results[case] = results_of(world / "uninterrupted" / case)
    return results


def assert_same(interrupted: dict[str, bytes], whole: dict[str, bytes]) -> None:
    assert [name for name in whole if interrupted[name] != whole[name]] == []


@pytest.mark.parametrize("case", CASES)
def test_killed_in_the_middle_of_updates(world: Path, uninterrupted: dict, case: str, tmp_path: Path) -> None:
    generator = random.Random(case)
    for _ in range(2):
        kill = forked.kill_at_call(TaskDistiller, "step", generator.randint(1, 9))
        status = forked.run(masked_run_glue.main, command(world, tmp_path / "out", case), tmp_path / "log", kill)
        assert status == -signal.SIGKILL
    run_to_the_end(world, tmp_path / "out", case)
    assert_same(results_of(tmp_path / "out"), uninterrupted[case])


@pytest.mark.parametrize("case", ["movement", "global_topk"])
@pytest.mark.parametrize("system_call", ["fsync", "replace", "rename"])
def test_killed_in_the_middle_of_saves(
    world: Path, uninterrupted: dict, case: str, system_call: str, tmp_path: Path
) -> None:
    last = {"fsync": 30, "replace": 6, "rename": 2}[system_call]
    for number in sorted(random.Random(system_call + case).sample(range(1, last + 1), 2)):
        kill = forked.kill_at_call(os, system_call, number)
        status = forked.run(masked_run_glue.main, command(world, tmp_path / "out", case), tmp_path / "log", kill)
        assert status == -signal.SIGKILL
    run_to_the_end(world, tmp_path / "out", case)
    assert_same(results_of(tmp_path / "out"), uninterrupted[case])
    assert not list((tmp_path / "out").glob(".incomplete-*"))


def test_sigterm_saves_and_exits_143(world: Path, uninterrupted: dict, tmp_path: Path) -> None:
    def terminate_in_update_six() -> None:
        original = TaskDistiller.step

        def step(self: TaskDistiller, *args: object) -> bool:
            if self.global_step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *args)

        TaskDistiller.step = step

    argv = command(world, tmp_path / "out", "movement")
    assert forked.run(masked_run_glue.main, argv, tmp_path / "log", terminate_in_update_six) == 143
    assert (tmp_path / "out" / "checkpoint-6").is_dir()
    run_to_the_end(world, tmp_path / "out", "movement")
    assert_same(results_of(tmp_path / "out"), uninterrupted["movement"])


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    world: Path, uninterrupted: dict, tmp_path: Path
) -> None:
    run_to_the_end(world, tmp_path / "out", "movement")
    for step, name in ((16, "optimizer.safetensors"), (12, "model.safetensors")):
        file = tmp_path / "out" / f"checkpoint-{step}" / name
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    (tmp_path / "log.txt").unlink()
    run_to_the_end(world, tmp_path / "out", "movement")
    log = (tmp_path / "log.txt").read_text()
    assert "checkpoint-16 is damaged" in log
    assert "checkpoint-12 is damaged" in log
    assert "resuming after update 8 of 16" in log
    assert_same(results_of(tmp_path / "out"), uninterrupted["movement"])


def test_finished_run_started_again_trains_nothing_and_keeps_its_result(
    world: Path, uninterrupted: dict, tmp_path: Path
) -> None:
    run_to_the_end(world, tmp_path / "out", "accumulation")
    run_to_the_end(world, tmp_path / "out", "accumulation")
    assert_same(results_of(tmp_path / "out"), uninterrupted["accumulation"])
