"""What a run will need, and which of its flags do nothing, against numbers worked out by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from transformers import AutoModelForSequenceClassification

from emmental.architectures import encoder_linears
from emmental.runs.run import TRAINER, Run, set_up
from emmental.training.arguments import parse_arguments
from emmental.training.forecast import disk_needed, forecast, tell_what_follows, without_effect
from emmental.training.phases import apply_recipe, dense_phase, keep_folders, pruning_phase

EXAMPLES = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(model: Path, tmp_path: Path):
    def made(*flags: str) -> Run:
        argv = ["--data_dir", "glue", "--task_name", "sst-2", "--model_name_or_path", str(model), "--no_cuda"]
        parsed = parse_arguments([*argv, "--output_dir", str(tmp_path / "out"), *flags])
        with set_up(parsed, TRAINER, True, "") as run:
            apply_recipe(run, EXAMPLES)
            return run

    return made


@pytest.fixture(scope="module")
def sizes(model: Path) -> tuple[int, int, int]:
    """Numbers in the model, in its encoder's matrices, in its word embeddings."""
    dense = AutoModelForSequenceClassification.from_pretrained(model)
    encoder = sum(dense.get_submodule(name).weight.numel() for name in encoder_linears(dense))
    return dense.num_parameters(), encoder, dense.get_input_embeddings().weight.numel()


def test_a_dense_training_keeps_two_checkpoints_and_writes_a_third(run, sizes) -> None:
    weights, _, _ = sizes
    total, checkpoint = disk_needed(run("--recipe", "paper", "--model_type", "bert"), EXAMPLES)
    assert checkpoint == 12 * weights
    assert total == 3 * 12 * weights + 4 * weights


def test_a_masked_training_has_scores_and_frozen_embeddings(run, sizes) -> None:
    weights, encoder, embeddings = sizes
    total, checkpoint = disk_needed(run("--recipe", "paper", "--save_total_limit", "1", "--max_steps", "8"), EXAMPLES)
    assert checkpoint == 4 * (weights + encoder) + 8 * (weights + encoder - embeddings)
    assert total == checkpoint + 4 * (weights + encoder)  # 64 rows in batches of 8: one checkpoint in 8 updates


def test_the_plain_command_trains_twice(run, sizes) -> None:
    weights, encoder, _ = sizes
    small = weights - int(encoder * 0.75)
    assert disk_needed(run(), EXAMPLES) == (3 * 12 * weights + 4 * weights + 3 * 12 * small + 4 * small, 12 * weights)


def test_cutting_alone_writes_no_checkpoint_of_its_own(run, sizes) -> None:
    weights, encoder, _ = sizes
    total, _ = disk_needed(run("--num_train_epochs", "0", "--no-dense_first"), EXAMPLES)
    assert total == 4 * (weights - int(encoder * 0.75))


def test_a_small_disk_is_warned_of_before_the_training(run, monkeypatch: pytest.MonkeyPatch) -> None:
    usage, said = type(shutil.disk_usage("/")), []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1_000))
    monkeypatch.setattr("emmental.training.forecast.logger.warning", lambda text, *values: said.append(text % values))
    assert "of which" in forecast(run(), EXAMPLES)[0]
    assert "0 MB are free: give another --output_dir, or a smaller --save_total_limit (now 2)" in said[0]


class Rows:
    """2,000 rows of 50 tokens."""

    lengths = np.full(2000, 50)

    def __len__(self) -> int:
        return len(self.lengths)


def work(run: Run, classes: int = 2) -> list[float]:
    """Updates that the dense training and each later one is told of."""
    run.task = SimpleNamespace(num_labels=classes)
    dense, parts = dense_phase(run, len(Rows())), [pruning_phase(run, *each) for each in keep_folders(run)]
    tell_what_follows(run, dense, parts, Rows())
    return [dense.work_after, *(part.work_after for part in parts)]


def test_the_dense_training_knows_what_follows(run) -> None:
    """A rung has 1,024 rows of information and 1,200 of refit; 90 updates of 32 rows: more than an epoch."""
    cut, teacher = 3 * (1024 + 1.4 * 1200) / 32, 2000 / 32 / 3
    assert work(run("--max_steps", "90")) == pytest.approx([cut + 90 * 0.4 + teacher, 0])
    six = 3 * (1024 * 11 / 3 + 1.4 * 1200) / 32
    assert work(run("--max_steps", "90"), 6) == pytest.approx([six + 90 * 0.4 + teacher, 0])
    assert work(run("--num_train_epochs", "0")) == pytest.approx([cut, 0])
    assert work(run("--max_steps", "30", "--speedup", "2")) == pytest.approx([cut + 30 * 0.6 + 10, 0])


def test_a_training_of_a_ladder_knows_the_shares_after_it(run) -> None:
    """Its own updates are those of a model with half of the encoder."""
    cut = 3 * (1024 + 1.4 * 1200) / 32
    second = cut + 30 * 0.4
    ladder = run("--max_steps", "30", "--keep", "0.5", "0.25")
    assert work(ladder) == pytest.approx([cut + 30 * 0.6 + second + 10, second / 0.6, 0])


def test_masks_cost_time_too(run) -> None:
    cut = 3 * (1024 + 1.4 * 1200) / 32
    single = run("--max_steps", "30", "--granularity", "unstructured")
    assert work(single) == pytest.approx([cut + 30 * 1.1 + 10, 0])
    assert work(run("--max_steps", "30", "--pruning_method", "topK")) == pytest.approx([30 * 1.1 + 10, 0])


def test_flags_without_effect_are_named(run) -> None:
    assert without_effect(run()) == []
    paper = run("--recipe", "paper", "--temperature", "3", "--pruning_method", "magnitude", "--mask_scale", "2")
    assert without_effect(paper) == ["--temperature (no teacher)", "--mask_scale (magnitude learns no scores)"]
    assert without_effect(run("--speedup_length", "64")) == ["--speedup_length (no --speedup)"]
    half = run("--recipe", "paper", "--fp16", "--final_threshold", "0.5")
    assert without_effect(half) == ["--fp16 (on a CPU it is slower than float32)"]
