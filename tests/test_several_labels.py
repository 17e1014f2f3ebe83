"""Several labels at once through whole runs: three forms, phases, methods, teacher, ladder, resuming, exports."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_labels
import torch
from faults.runs import Command, difference
from forked import kill_at_call
from sklearn.metrics import average_precision_score, f1_score
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

import masked_run_glue
from distiller import TaskDistiller
from emmental.cascade import load
from emmental.export.model_folder import read_model
from emmental.export.onnx import export_onnx_folder
from emmental.inference.predict import main as predict
from emmental.reporting.command import main as report
from emmental.task_heads import SeveralLabels, task_head

LEARNS = ("--max_steps", "160", "--learning_rate", "1e-2", "--warmup_steps", "4", "--per_gpu_train_batch_size", "16")
FEW = ("--max_steps", "6", "--learning_rate", "1e-3", "--per_gpu_train_batch_size", "8")
SEVERAL = "multi_label_classification"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


def run(model: Path, folder: Path, *flags: str, form: str = "lists", output: str = "out") -> dict[str, float]:
    return masked_run_glue.main(
        [
            *("--model_name_or_path", str(model), *tiny_labels.files(folder, form)),
            *("--output_dir", str(folder / output), "--feature_cache_dir", str(folder / "cache")),
            *("--max_seq_length", "16", "--no_cuda", "--no-bf16", "--no-engines", "--no-pictures", *flags),
        ]
    )


@pytest.fixture(scope="module")
def dense(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A dense model that has learned the labels, and its results."""
    folder = tmp_path_factory.mktemp("dense")
    results = run(bert, folder, "--model_type", "bert", *LEARNS)
    return folder / "out", results


@pytest.mark.parametrize("form", tiny_labels.FORMS)
def test_each_form_trains_the_same_model(form: str, bert: Path, dense, tmp_path: Path, capsys) -> None:
    results = run(bert, tmp_path, "--model_type", "bert", *LEARNS, form=form)
    assert results["micro_f1"] == pytest.approx(dense[1]["micro_f1"])
    assert results["micro_f1"] > 0.85
    printed = capsys.readouterr()
    assert "task custom: several labels at once, 3 labels" in printed.err
    assert "bag of words, micro_f1" in printed.out
    assert "always the most frequent labels, micro_f1" in printed.out
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.problem_type, [*config.id2label.values()]) == (SEVERAL, [*tiny_labels.LABELS])


def test_metrics_and_predictions_are_those_of_the_model(dense, tmp_path: Path) -> None:
    """Computed again from the file's logits with scikit-learn; the pipeline applies a sigmoid."""
    folder, results = dense
    found = tiny_labels.rows(40, 40)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), tiny.tokenizer()
    with torch.no_grad():
        logits = model(**tokenizer([text for text, _ in found], padding=True, return_tensors="pt")).logits
    wanted = np.array([[label in labels for label in tiny_labels.LABELS] for _, labels in found], int)
    given, shares = (logits > 0).numpy().astype(int), logits.sigmoid().numpy()
    assert results["micro_f1"] == pytest.approx(f1_score(wanted, given, average="micro"))
    assert results["macro_f1"] == pytest.approx(f1_score(wanted, given, average="macro"))
    assert results["average_precision"] == pytest.approx(average_precision_score(wanted, shares), abs=1e-6)
    assert results["subset_accuracy"] == pytest.approx((wanted == given).all(1).mean())
    texts = tmp_path / "texts.csv"
    texts.write_text("sentence1\n" + "".join(f"{text}\n" for text, _ in found))
    flags = ["--model_name_or_path", str(folder), "--test_file", str(texts), "--do_predict", "--no_cuda"]
    masked_run_glue.main([*flags, "--output_dir", str(tmp_path / "p"), "--feature_cache_dir", str(tmp_path / "c")])
    with open(tmp_path / "p" / "predictions.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row, shares_of_row, given_of_row in zip(rows, shares, given, strict=True):
        names = [name for name, has in zip(tiny_labels.LABELS, given_of_row, strict=True) if has]
        assert json.loads(row["prediction"]) == names
        for name, share in zip(tiny_labels.LABELS, shares_of_row, strict=True):
            assert float(row[f"probability of {name}"]) == pytest.approx(float(share), abs=1e-5)
    served = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder), top_k=None)
    answers = {one["label"]: one["score"] for one in served([found[0][0]])[0]}
    assert [answers[name] for name in tiny_labels.LABELS] == pytest.approx(shares[0].tolist(), abs=1e-5)
    target = tmp_path / "answers.jsonl"
    predict(["--model_name_or_path", str(folder), "--input", str(texts), "--output", str(target), "--threads", "1"])
    first = json.loads(target.read_text().splitlines()[0])
    assert first["labels"] == [name for name, has in zip(tiny_labels.LABELS, given[0], strict=True) if has]


def test_a_finished_model_is_evaluated_pruned_and_written_about(dense, tmp_path: Path, capsys) -> None:
    """The model is known as fine-tuned; the plain recipe cuts by the head of several labels, recovers, and writes."""
    folder, results = dense
    evaluated = run(folder, tmp_path / "e", "--do_eval")
    assert {name: evaluated[name] for name in ("micro_f1", "average_precision")} == pytest.approx(
        {name: results[name] for name in ("micro_f1", "average_precision")}
    )
    more = tmp_path / "more.txt"
    more.write_text("".join(f"{text}\n" for text, _ in tiny_labels.rows(30, 7)))
    few = ("--max_steps", "60", "--learning_rate", "3e-3")
    pruned = run(folder, tmp_path, "--keep", "0.5", *few, "--unlabeled_file", str(more), "--do_train", "--do_eval")
    assert pruned["micro_f1"] > 0.75
    printed = capsys.readouterr()
    assert "the model is fine-tuned for this task already" in printed.err
    table = [line.split() for line in printed.out.splitlines()]
    assert any(line[:3] == ["micro_f1", "encoder", "weights"] for line in table)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "classifier (several labels at once)" in card
    assert "the sigmoid of its logit" in card
    assert "| micro_f1 |" in card
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["positive_label"] is None
    assert 0 < summary["constant_answer"]["micro_f1"] < 1
    small = read_model(tmp_path / "out")
    assert isinstance(task_head(small), SeveralLabels)
    made = export_onnx_folder(tmp_path / "out", tmp_path / "onnx", True)
    assert made.difference < 1e-4
    served = tmp_path / "answers.jsonl"
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(text for text, _ in tiny_labels.rows(5, 3)) + "\n")
    for engine in ("onnx", "onnx-int8"):
        where = ["--model_name_or_path", str(tmp_path / "onnx"), "--input", str(texts), "--output", str(served)]
        predict([*where, "--engine", engine])
        assert all(set(json.loads(line)) == {"index", "labels", "probabilities"} for line in served.open())


@pytest.mark.parametrize("form", ["cells", "columns"])
def test_the_report_reads_the_same_forms(form: str, dense, tmp_path: Path) -> None:
    flags = tiny_labels.files(tmp_path, form)[2:]  # without the training file, int8 is calibrated on dev rows
    page, numbers = tmp_path / "report.html", tmp_path / "report.json"
    fast = ["--seconds", "0.001", "--batch_sizes", "1", "--lengths", "8", "--threads", "1"]
    report(["--model_name_or_path", str(dense[0]), *flags, "--output", str(page), "--results", str(numbers), *fast])
    results = json.loads(numbers.read_text())
    first = results["quality"][0]
    assert (results["primary_metric"], first["rows"]) == ("micro_f1", 40)
    assert first["metrics"]["micro_f1"] == pytest.approx(dense[1]["micro_f1"])
    assert next(row for row in results["quality"] if row["name"] == "onnx")["agreement"] == 1.0
    assert "rows with all labels right" in page.read_text()


METHODS = {
    "structured": ("--keep", "0.5"),
    "single weights": ("--granularity", "unstructured"),
    "fine-pruning": ("--pruning_method", "topK", "--keep", "0.3"),
    "a penalty": ("--recipe", "paper", *("--pruning_method", "l0"), *tiny.METHODS["l0"]),
    "magnitude": ("--recipe", "paper", "--pruning_method", "magnitude", "--final_threshold", "0.3"),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_family_of_methods(name: str, dense, tmp_path: Path) -> None:
    results = run(dense[0], tmp_path, *METHODS[name], *FEW)
    assert 0 <= results["subset_accuracy"] <= 1
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.problem_type == SEVERAL
    assert [*config.id2label.values()] == [*tiny_labels.LABELS]


def test_a_teacher_is_learned_label_by_label(dense, bert: Path, tmp_path: Path) -> None:
    """Its labels are in another order, and no label of the data is used."""
    folder = tmp_path / "teacher"
    shutil.copytree(dense[0], folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    order = [2, 0, 1]
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order])
        model.classifier.bias.copy_(model.classifier.bias[order])
    model.config.id2label = {place: tiny_labels.LABELS[label] for place, label in enumerate(order)}
    model.config.label2id = {name: place for place, name in model.config.id2label.items()}
    model.save_pretrained(folder)
    teacher = ("--teacher_name_or_path", str(folder), "--alpha_ce", "0", "--alpha_distil", "1")
    results = run(bert, tmp_path, "--model_type", "bert", *teacher, *LEARNS)
    assert results["micro_f1"] > 0.8


def test_a_ladder_ends_with_a_cascade(bert: Path, tmp_path: Path, capsys) -> None:
    run(bert, tmp_path, "--keep", "0.6", "0.3", "--cascade", "--changed", "0.3", *FEW)
    assert "cascade, 30 % may change (served)" in capsys.readouterr().out
    cascade = load(tmp_path / "out" / "cascade", threads=1)
    assert {one["name"] for one in cascade.record["models"]} == {"bag of words", "keep-0.3", "keep-0.6", "dense"}
    (answer,) = cascade.classify([tiny_labels.rows(1, 1)[0][0]])
    assert isinstance(answer["label"], list)
    assert AutoConfig.from_pretrained(tmp_path / "out" / "keep-0.6").problem_type == SEVERAL


def test_killed_in_the_recovery_the_same_command_ends_with_the_same_bits(bert: Path, tmp_path: Path) -> None:
    flags = (
        *(
            "--model_name_or_path",
            str(bert),
            *tiny_labels.files(tmp_path, "columns"),
            "--feature_cache_dir",
            "{run}/c",
        ),
        *("--max_seq_length", "16", "--no_cuda", "--no-pictures", "--no-engines", "--keep", "0.5"),
        *("--max_steps", "6", "--save_steps", "2", "--dense_first", "--per_gpu_train_batch_size", "32"),
    )
    command = Command("labels", masked_run_glue.main, flags, "--output_dir", "masked_run_glue.py", TaskDistiller)
    whole, killed = tmp_path / "whole" / "out", tmp_path / "killed" / "out"
    assert command.finish(whole) is None
    updates = int(json.loads((whole / "dense" / "train_log.jsonl").read_text().splitlines()[-1])["step"])
    assert command.run(killed, kill_at_call(TaskDistiller, "step", updates + 4)) == -9
    assert command.finish(killed) is None
    assert difference(killed, whole) is None


@pytest.mark.parametrize(
    ("labels", "model", "message"),
    [
        ("single", "several", "has the problem_type multi_label_classification: it gives several labels a row, and"),
        ("several", "single", "gives one class a row, and the data has several labels a row; --new_classifier"),
    ],
)
def test_models_of_another_kind_are_refused(labels: str, model: str, message: str, dense, tmp_path, capsys) -> None:
    data = tmp_path / "t.csv"
    rows = [(text, "hot" if "hot" in held else "wet") for text, held in tiny_labels.rows(60, 0)]
    data.write_text("sentence1,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    single = tiny.save_bert(
        tmp_path / "single",
        3,
        id2label=dict(enumerate(tiny_labels.LABELS)),
        label2id={name: index for index, name in enumerate(tiny_labels.LABELS)},
    )
    start = dense[0] if model == "several" else single
    files = ["--train_file", str(data)] if labels == "single" else tiny_labels.files(tmp_path)
    with pytest.raises(SystemExit) as ended:
        masked_run_glue.main(["--model_name_or_path", str(start), *files, "--output_dir", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_flags_that_contradict_each_other(tmp_path: Path, capsys) -> None:
    files = ["--train_file", "x.csv", "--label_column", "a", "b"]
    for more, message in (
        (
            ["--label_separator", ","],
            "--label_column and --label_separator: a row's labels are in a cell, or in columns",
        ),
        (["--label_separator", ""], "--label_separator accepts one character or more"),
        (["--task_kind", "regression"], "--label_column trains several labels at once, --task_kind regression one"),
    ):
        with pytest.raises(SystemExit):
            masked_run_glue.main([*files, *more])
        assert message in capsys.readouterr().err
