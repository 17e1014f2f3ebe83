"""Scores in any unit through whole runs: phases, checkpoints, resuming, predictions, exports and pruning."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import emmental
import masked_run_glue
from emmental.export.model_folder import read_model
from emmental.export.storage import load_package, save_package

UNIT = 1000.0
FEW = ("--max_steps", "80", "--learning_rate", "3e-3", "--warmup_steps", "4", "--per_gpu_train_batch_size", "8")


def write(path: Path, unit: float, rows: int, seed: int) -> Path:
    """Texts of six words; the score is how many of them are good, in this unit, and 50 units more."""
    generator, lines = random.Random(seed), ["sentence1,label"]
    for _ in range(rows):
        good = generator.randint(0, 6)
        words = generator.choices(tiny.GOOD, k=good) + generator.choices(tiny.BAD, k=6 - good)
        lines.append(f"{' '.join(words)},{(good + 50) * unit:.6f}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


def run(bert: Path, folder: Path, unit: float, *flags: str) -> dict[str, float]:
    folder.mkdir(exist_ok=True)
    files = [write(folder / f"{name}.csv", unit, rows, rows) for name, rows in (("t", 96), ("d", 40))]
    where = ["--train_file", str(files[0]), "--validation_file", str(files[1]), "--output_dir", str(folder / "out")]
    return masked_run_glue.main(
        [
            *("--model_name_or_path", str(bert), *where, "--feature_cache_dir", str(folder / "cache")),
            *("--task_kind", "regression", "--max_seq_length", "16", "--no-engines", "--no-pictures", "--no_cuda"),
            *(() if {"--bf16", "--fp16"} & {*flags} else ("--no-bf16",)),
            *flags,
        ]
    )


def test_the_unit_scales_the_errors_and_nothing_else(bert: Path, tmp_path: Path, capsys) -> None:
    one, other = (run(bert, tmp_path / str(unit), unit, "--model_type", "bert", *FEW) for unit in (1.0, UNIT))
    assert one["pearson"] > 0.8
    assert other["pearson"] == pytest.approx(one["pearson"], abs=1e-4)
    assert other["rmse"] == pytest.approx(UNIT * one["rmse"], rel=1e-3)
    assert other["mae"] == pytest.approx(UNIT * one["mae"], rel=1e-3)
    train, dev = (
        np.loadtxt(tmp_path / "1.0" / f"{name}.csv", delimiter=",", skiprows=1, usecols=1) for name in ("t", "d")
    )
    same = float(np.sqrt(((dev - train.mean()) ** 2).mean()))
    assert one["rmse"] < same
    printed = capsys.readouterr().out
    assert ["always", "the", "mean,", "rmse", f"{same:.5g}"] in [line.split() for line in printed.splitlines()]
    assert "bag of words, rmse" in printed
    summary = json.loads((tmp_path / "1.0" / "out" / "summary.json").read_text())
    assert summary["constant_answer"]["rmse"] == pytest.approx(same)
    assert "| always the mean, rmse |" in (tmp_path / "1.0" / "out" / "README.md").read_text()


def test_every_form_answers_in_the_unit_of_the_labels(bert: Path, tmp_path: Path) -> None:
    flags = ("--model_type", "bert", "--evaluate_during_training", "--save_steps", "20", "--load_best_model_at_end")
    results = run(bert, tmp_path, UNIT, *flags, *FEW, "--eval_all_checkpoints")
    checkpoints = json.loads((tmp_path / "out" / "eval_all_checkpoints.json").read_text())
    for row in checkpoints:
        there = json.loads((tmp_path / "out" / f"evaluations/checkpoint-{row['step']}/eval_results.json").read_text())
        assert row["rmse"] == pytest.approx(there["rmse"], rel=1e-4)
        assert row["mae"] < 20 * UNIT
    best = max(checkpoints, key=lambda row: row["corr"])
    assert results["rmse"] == pytest.approx(best["rmse"], rel=1e-4)
    folder = tmp_path / "out"
    ids = {"input_ids": torch.tensor([[2, *range(5, 11), 3]]), "attention_mask": torch.ones(1, 8, dtype=torch.int64)}
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    save_package(folder, tmp_path / "package", weights="fp32", embeddings="fp32")
    with torch.no_grad():
        expected = model(**ids).logits.item()
        assert 40 * UNIT < expected < 70 * UNIT
        for form in (read_model(folder), load_package(tmp_path / "package")):
            assert form(**ids).logits.item() == pytest.approx(expected, rel=1e-5)


def test_a_resumed_run_has_the_same_bits(bert: Path, tmp_path: Path) -> None:
    flags = ("--model_type", "bert", "--save_steps", "40", *FEW)
    run(bert, tmp_path / "whole", UNIT, *flags)
    run(bert, tmp_path / "parts", UNIT, *flags)
    last = tmp_path / "parts" / "out" / "checkpoint-80"
    (last / "model.safetensors").write_bytes(b"damaged")
    (tmp_path / "parts" / "out" / "model.safetensors").unlink()
    run(bert, tmp_path / "parts", UNIT, *flags)
    ours, theirs = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("flags", [("--keep", "0.5"), ("--keep", "0.5", "--pruning_method", "topK")])
def test_pruning_after_a_dense_phase(bert: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    results = run(bert, tmp_path, UNIT, *flags, *FEW, "--evaluate_during_training")
    assert results["rmse"] < 2 * UNIT
    again = run(tmp_path / "out" / "dense", tmp_path / "again", UNIT, "--keep", "0.5", "--num_train_epochs", "0")
    assert again["rmse"] < 2 * UNIT  # the dense model is known as fine-tuned: nothing is trained
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "dense")
    texts = [line.rpartition(",")[0] for line in (tmp_path / "t.csv").read_text().splitlines()[1:]]
    small = emmental.prune(model, tiny.tokenizer(), texts, keep=0.5)
    inputs = tiny.tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        far = small(**inputs).logits - model.eval()(**inputs).logits
    assert far.square().mean().sqrt() < UNIT


def test_a_teacher_in_another_unit(bert: Path, tmp_path: Path, capsys) -> None:
    run(bert, tmp_path / "teacher", 1.0, "--model_type", "bert", *FEW)
    teacher = ("--teacher_name_or_path", str(tmp_path / "teacher" / "out"), "--alpha_ce", "0", "--alpha_distil", "1")
    results = run(bert, tmp_path / "student", UNIT, "--model_type", "bert", *teacher, *FEW)
    assert "gives scores in another unit than the labels" in capsys.readouterr().err
    assert results["pearson"] > 0.7
    assert results["rmse"] < 2 * UNIT


@pytest.mark.parametrize("half", ["--bf16", "--fp16"])
def test_scores_are_not_rounded_to_16_bits(bert: Path, tmp_path: Path, half: str) -> None:
    """5,600,000 is beyond float16, and bfloat16 would write 5,603,328."""
    trained = run(bert, tmp_path, 1e5, "--model_type", "bert", half, "--do_train", "--do_eval", *FEW[:6])
    exact = run(tmp_path / "out", tmp_path / "later", 1e5, "--do_eval")
    assert trained["rmse"] == pytest.approx(exact["rmse"], rel=1e-6)
    assert np.isfinite(trained["rmse"])


def test_a_head_beyond_float16_is_written_in_float32(bert: Path, tmp_path: Path, capsys) -> None:
    half = ("--save_dtype", "float16", "--model_type", "bert", *FEW)
    run(bert, tmp_path, 1e5, *half)
    assert "--save_dtype float16 holds numbers up to 6.55e+04 and classifier." in capsys.readouterr().err
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert run(tmp_path / "out", tmp_path / "later", 1e5, "--do_eval")["rmse"] < 1e6
