"""The measurement of updates: what it reports, of whom, on which batches."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

from benchmarks import train_step
from benchmarks.subjects import PHASES, SUBJECTS, build, padded
from emmental.modules.products import fast_products
from emmental.patching import masked_layers
from emmental.runs import precision

TINY = ["--layers=1", "--hidden=64", "--batch_size=2", "--max_seq_length=8", "--threads=1"]
SHORT = [*TINY, "--updates=4", "--phase_updates=1", "--warmup=1"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    file = tmp_path_factory.mktemp("json") / "results.json"
    train_step.main([*SHORT, "--subjects", *SUBJECTS, "--evaluation=2", f"--json={file}"])
    return json.loads(file.read_text())


@pytest.fixture
def run(tmp_path):
    def make(subject: str):
        options = train_step.build_parser().parse_args(SHORT)
        train_step.generate_missing(options, tmp_path)
        return build(options, SUBJECTS[subject], tmp_path)

    return make


def test_every_subject_is_measured_as_often_as_it_takes_part(results):
    counts = {name: row["seconds"]["count"] for name, row in results["updates"].items()}
    assert counts == {name: 2 if subject.reference else 4 for name, subject in SUBJECTS.items()}


def test_the_floor_is_one(results):
    assert results["updates"]["dense"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0, "count": 4}


def test_bf16_beside_fp32():
    results = train_step.main([*SHORT, "--updates=2", "--beside_bf16", "--subjects", "topK"])
    assert list(results["updates"]) == ["topK", "topK, bf16"]
    assert train_step.beside_fp32({"topK": [2.0, 4.0], "topK, bf16": [1.0, 1.0]})["topK"].median == 0.375
    assert results["bf16"]["topK"]["count"] == 2
    options = train_step.build_parser().parse_args(["--beside_bf16", "--bf16"])
    assert train_step.problems(options) == [
        "--beside_bf16 compares float32 with bfloat16; omit --bf16, --fp16 and --memory"
    ]


def test_plain_pytorch_is_the_other_floor(results):
    rows = results["updates"]
    assert rows["dense, plain PyTorch"]["ratio_to_pytorch"]["median"] == 1.0
    assert rows["topK"]["ratio_to_pytorch"]["count"] == 4
    assert results["evaluation"]["dense, plain PyTorch"]["ratio_to_pytorch"]["median"] == 1.0


def test_plain_pytorch_takes_no_products_of_ours(run, monkeypatch):
    monkeypatch.setattr(precision, "onednn_is_faster", lambda: True)
    for subject, fast in (("dense", True), ("dense, plain PyTorch", False)):
        assert isinstance(run(subject).loop.learner.precision.autocast(), fast_products) is fast


def test_every_phase_took_time(results):
    for name, row in results["updates"].items():
        assert set(row["phases"]) == {"data", *PHASES, "logging"}
        assert all(row["phases"][phase] > 0 for phase in ("forward", "backward", "update")), name
        makes_masks = row["masked_weights"] > 0 and not SUBJECTS[name].reference  # that one makes them in forward
        assert (row["phases"]["masks"] > 0) == makes_masks, name


def test_masked_weights_are_those_of_the_encoder(results):
    assert {row["masked_weights"] for row in results["updates"].values()} == {0, 12 * 64 * 64}


def test_batches_without_padding(results):
    assert results["batches"]["tokens_per_batch"] == 16
    assert results["batches"]["padding_share"] == 0
    assert results["batches"]["count"] == 6


def test_evaluation_beside_the_floor(results):
    evaluated = results["evaluation"]
    assert {"topK", "threshold", "sigmoied_threshold", "magnitude", "l0"} < set(evaluated)
    assert evaluated["dense"]["ratio"]["median"] == 1.0
    assert evaluated["topK"]["seconds"]["count"] == 2


def test_machine_and_options_are_recorded(results):
    assert results["machine"]["threads"] == 1
    assert results["machine"]["torch"] == torch.__version__
    assert results["options"]["density"] == 0.15


def test_thresholds_keep_the_asked_share(run):
    for name in ("topK", "threshold", "sigmoied_threshold", "magnitude"):
        learner = run(name).loop.learner
        learner._make_masks(learner.plan.at(1)[0])
        layers = masked_layers(learner.student).values()
        kept = sum(int(layer.mask.sum()) for layer in layers) / sum(layer.weight.numel() for layer in layers)
        assert kept == pytest.approx(0.15, abs=0.01), name


def test_the_reference_computes_what_topk_computes(run, tmp_path):
    """The same losses: padding and sorting change the time, not the numbers."""
    losses = {}
    for name in ("topK", "reference"):
        made = run(name)
        options = train_step.build_parser().parse_args(SHORT)
        batch, _ = train_step.draw_batches(options, made)[0]
        made.loop.learner.student.eval()
        made.loop.learner.begin_update(1)
        made.loop.learner.step(batch, *made.loop.learner.plan.at(1))
        losses[name] = made.loop.learner.losses["total"].item()
    assert losses["reference"] == pytest.approx(losses["topK"], rel=1e-5)


def test_padding_to_a_length():
    batch = {"input_ids": torch.ones(2, 3), "labels": torch.ones(2)}
    filled = padded(batch, 5)
    assert filled["input_ids"].tolist() == [[1, 1, 1, 0, 0]] * 2
    assert filled["labels"].tolist() == [1, 1]


def test_memory_of_one_subject(capsys):
    peak = train_step.main([*TINY, "--memory_of", "topK"])["memory_bytes"]
    assert peak == json.loads(capsys.readouterr().out)["memory_bytes"]
    assert peak > 1e6


def test_memory_is_told_per_masked_weight(monkeypatch):
    peaks = iter([{"memory_bytes": 1000}, {"memory_bytes": 1340}])
    answer = argparse.Namespace
    monkeypatch.setattr(
        train_step.subprocess, "run", lambda *args, **options: answer(stdout=json.dumps(next(peaks)) + "\n")
    )
    runs = [answer(subject=SUBJECTS[name], masked_weights=count) for name, count in (("dense", 0), ("topK", 20))]
    assert train_step.measure_memory(runs, [])["topK"] == {"bytes": 1340, "bytes_per_masked_weight": 17.0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--subjects", "topk"], "--subjects accepts dense, "),
        (["--density", "1.5"], "--density accepts a share of weights between 0 and 1, not 1.5"),
        (["--updates", "0"], "--updates accepts numbers from 1, not 0"),
    ],
)
def test_mistakes_are_one_line(capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        train_step.main(flags)
    assert message in capsys.readouterr().err
