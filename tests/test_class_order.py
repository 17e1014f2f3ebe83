"""A model is the same whatever the order of its outputs: evaluated, predicting, trained further, as a teacher."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import masked_run_glue

NAMES, ORDER = ("contradiction", "entailment", "neutral"), (2, 0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the task's order of classes, the same model with another order, and the data."""
    folder = tmp_path_factory.mktemp("order")
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    tiny.save_bert(folder / "plain", num_labels=3, **labels)
    model = AutoModelForSequenceClassification.from_pretrained(folder / "plain")
    rows = list(ORDER)
    model.classifier.weight.data = model.classifier.weight.data[rows].clone()
    model.classifier.bias.data = model.classifier.bias.data[rows].clone()
    model.config.id2label = {number: NAMES[row].upper() for number, row in enumerate(ORDER)}
    model.config.label2id = {name: number for number, name in model.config.id2label.items()}
    model.save_pretrained(folder / "turned")
    tiny.tokenizer().save_pretrained(folder / "turned")
    tiny.write_task(folder / "mnli", "mnli", train=32, dev=30)
    return folder


def run(folder: Path, output: Path, *flags: str) -> dict[str, float]:
    return masked_run_glue.main(
        [
            *("--data_dir", str(folder / "mnli"), "--task_name", "mnli", "--output_dir", str(output), "--no_cuda"),
            *(
                "--feature_cache_dir",
                str(folder / "cache"),
                "--recipe",
                "paper",
                "--max_seq_length",
                "32",
                "--no-pictures",
                *flags,
            ),
        ]
    )


def test_evaluated_and_predicting(folder: Path, tmp_path: Path) -> None:
    results = [
        run(folder, tmp_path / name, "--model_name_or_path", str(folder / name), "--do_eval", "--do_predict")
        for name in ("plain", "turned")
    ]
    assert results[0] == pytest.approx(results[1])
    for file in ("MNLI-m.tsv", "MNLI-mm.tsv"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "turned" / file).read_bytes()


def train(folder: Path, output: Path, model: str, teacher: str) -> dict[str, torch.Tensor]:
    names = [*("--model_name_or_path", str(folder / model)), *("--teacher_name_or_path", str(folder / teacher))]
    run(folder, output, "--do_train", "--max_steps", "3", "--warmup_steps", "0", "--learning_rate", "1e-2", *names)
    return load_file(output / "model.safetensors")


def moved_apart(plain: dict[str, torch.Tensor], turned: dict[str, torch.Tensor]) -> float:
    """The share of all weights that differ, with the classes of `plain` put in the order of `turned`."""
    expected = {name: value[list(ORDER)] if name[:11] == "classifier." else value for name, value in plain.items()}
    far = sum(int((value - turned[name]).abs().gt(1e-4).sum()) for name, value in expected.items())
    return far / sum(value.numel() for value in expected.values())


def test_trained_further_and_as_a_teacher(folder: Path, tmp_path: Path) -> None:
    weights = train(folder, tmp_path / "plain", "plain", "plain")
    same = train(folder, tmp_path / "taught", "plain", "turned")
    turned = train(folder, tmp_path / "turned", "turned", "plain")
    assert all(torch.allclose(value, same[name], atol=1e-4) for name, value in weights.items())
    shutil.copytree(folder / "turned", folder / "misnamed")
    shutil.copy(folder / "plain" / "config.json", folder / "misnamed")
    misnamed = train(folder, tmp_path / "misnamed", "misnamed", "plain")
    # Adam moves a weight whose gradient is rounding alone by a whole step, so some differ.
    assert moved_apart(weights, turned) < 0.25
    assert moved_apart(weights, misnamed) > 0.6
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "turned").config
    assert list(config.id2label.values()) == [NAMES[row] for row in ORDER]
