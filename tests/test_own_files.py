"""The trainer on own files: what it says at the start and keeps in the model, and what later runs take from it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification

import masked_run_glue
from emmental.command_line import OneLineParser
from emmental.data.tokenization import load_tokenizer, lowers_case
from emmental.tasks import read_split, user_task
from emmental.tasks.own_files import Reading
from emmental.tasks.set_aside import recorded_rows


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


def write(path: Path, rows: int, labels: str = "no yes", header: str = "sentence1,label") -> Path:
    names = labels.split()
    lines = [f"{' '.join(tiny.WORDS[row % 7 : row % 7 + 3])},{names[row % len(names)]}" for row in range(rows)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def run(bert: Path, folder: Path, *flags: str) -> dict[str, float]:
    if not (bert / "training_args.json").exists() and "--max_seq_length" not in flags:
        flags = (*flags, "--max_seq_length", "16")
    return masked_run_glue.main(
        [
            *("--model_name_or_path", str(bert), "--output_dir", str(folder / "out"), "--no_cuda", "--no-pictures"),
            "--no-engines",
            *("--feature_cache_dir", str(folder / "cache"), "--max_steps", "3", "--warmup_steps", "0", *flags),
        ]
    )


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_what_the_data_is_stands_at_the_start(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train = write(tmp_path / "t.csv", 60, "1 0 1")
    run(bert, tmp_path, "--train_file", str(train), "--max_seq_length", "4", "--dry_run", "--seed", "3")
    text = capsys.readouterr().err
    assert "task custom: classification, 2 classes (--task_kind regression takes the labels as scores)" in text
    training, dev = (
        int(re.search(rf"{split} data: ([0-9]+) rows: 0 [0-9]+, 1 [0-9]+; the ", text)[1])
        for split in ("training", "dev")
    )
    assert training + dev == 60
    assert re.search(r"dev data: .* % \(set aside from --train_file, as there is no --validation_file\)", text)
    assert (
        f"training data: {training} of {training} texts are cut at --max_seq_length 4; the longest has 5 tokens"
        in text
    )


def test_later_runs_take_what_the_model_was_trained_with(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    train, dev = write(tmp_path / "t.csv", 30), write(tmp_path / "d.csv", 20, "yes no no")
    training = ["--train_file", str(train), "--validation_file", str(dev), "--max_seq_length", "4"]
    results = run(bert, tmp_path, *training, "--positive_label", "no")
    output = tmp_path / "out"
    config = json.loads((output / "config.json").read_text())
    assert (config["max_seq_length"], config["positive_label"]) == (4, "no")
    kept = (output / "eval_results.json").read_bytes()
    assert json.loads(kept) == {**results, "positive_label": "no"}
    assert "f1 (no)" in (output / "README.md").read_text()
    write(dev, 10, "yes no yes")
    capsys.readouterr()
    again = run(output, tmp_path, "--validation_file", str(dev), "--do_eval")
    assert "10 of 10 texts are cut at --max_seq_length 4" in capsys.readouterr().err
    assert (output / "eval_results.json").read_bytes() == kept
    found = json.loads((output / "evaluations" / "again" / "eval_results.json").read_text())
    assert found == {**again, "positive_label": "no"}
    run(output, tmp_path, "--validation_file", str(dev), "--do_eval", "--max_seq_length", "9")
    assert "are cut" not in capsys.readouterr().err


def test_as_many_predictions_as_rows(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text("sentence1\nkasa\n\nlote\n\n\n")
    run(bert, tmp_path, "--test_file", str(tmp_path / "p.tsv"), "--do_predict")
    assert len((tmp_path / "out" / "predictions.tsv").read_text().splitlines()) == 1 + 5
    assert not (tmp_path / "out" / "eval_results.json").exists()  # --do_predict alone predicts only


def test_dev_data_of_one_class_is_no_collapse(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dev = write(tmp_path / "d.csv", 6, "yes")
    train = write(tmp_path / "t.csv", 30)
    run(bert, tmp_path, "--train_file", str(train), "--validation_file", str(dev))
    text = capsys.readouterr().err
    assert "dev data: all rows are of one class, 'yes'" in text
    assert "collapsed" not in text


def test_names_that_do_not_match(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    labels = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    named = tiny.save_bert(tmp_path / "named", **labels)
    train, dev = write(tmp_path / "t.csv", 30), write(tmp_path / "d.csv", 12)
    files = ["--train_file", str(train), "--validation_file", str(dev)]
    message = refused(capsys, named, tmp_path, *files, "--do_eval")
    assert "has the classes good, bad, --task_name custom has no, yes" in message
    assert "--label_names" in message
    assert "--new_classifier" in refused(capsys, named, tmp_path, *files)
    run(named, tmp_path, *files, "--do_eval", "--do_predict", "--test_file", str(dev), "--label_names", "yes", "no")
    model = AutoModelForSequenceClassification.from_pretrained(named)
    tokens = tiny.tokenizer()(dev.read_text().splitlines()[1].split(",")[0], return_tensors="pt")
    with torch.no_grad():
        expected = ("yes", "no")[int(model(**tokens).logits.argmax())]
    assert (tmp_path / "out" / "predictions.tsv").read_text().splitlines()[1].split("\t")[:2] == ["0", expected]
    run(named, tmp_path, *files, "--new_classifier", "--do_train", "--recipe", "paper")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}


def test_a_new_classifier_is_not_the_old_one(make_args, bert_dir) -> None:
    from emmental.training.models import load_model

    args = make_args(new_classifier=True)
    model = load_model(args, args.task, tiny.tokenizer())
    old = AutoModelForSequenceClassification.from_pretrained(bert_dir)
    assert not torch.equal(model.classifier.weight, old.classifier.weight)
    assert torch.equal(model.bert.pooler.dense.weight, old.bert.pooler.dense.weight)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task_kind", "ranking"], "--task_kind accepts classification, regression, none, not 'ranking'"),
        (["--delimiter", "ab"], "--delimiter accepts one character, or tab"),
        (["--encoding", "utf-99"], "--encoding accepts what Python knows"),
        (["--encoding", "hex"], "--encoding accepts what Python knows"),
        (["--positive_label", "maybe"], "--positive_label maybe is none of no, yes"),
        (["--test_file", "ts.csv", "--do_predict"], "--test_file ts.csv is not a file"),
        (["--text_column", "label"], "one column is named twice (label, label)"),
        (["--text_column", "text"], "no column named 'text'; the columns are sentence1, label"),
    ],
)
def test_flags_on_own_files_are_checked(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    assert message in refused(capsys, bert, tmp_path, "--train_file", str(write(tmp_path / "t.csv", 30)), *flags)


def test_a_mistyped_file_shows_near_names(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = write(tmp_path / "tickets.csv", 30)
    assert refused(capsys, bert, tmp_path, "--train_file", str(tmp_path / "tikets.csv")).endswith(f"there is {file}")


def test_dev_texts_that_are_training_texts_are_said_and_the_metric_without_them_given(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = tiny.WORDS
    (tmp_path / "t.csv").write_text(
        "sentence1,label\n" + "".join(f"{w} kasa,{'yx'[i % 2]}\n" for i, w in enumerate(words))
    )
    (tmp_path / "d.csv").write_text(f"sentence1,label\n{words[0]} kasa,x\n  {words[1]}  kasa,y\n{words[2]} bote,x\n")
    files = ("--train_file", str(tmp_path / "t.csv"), "--validation_file", str(tmp_path / "d.csv"))
    results = run(bert, tmp_path, *files, "--model_type", "bert")
    text = capsys.readouterr().err
    assert text.count("dev data: 2 of 3 texts are also training texts, so the metric is too high") == 1
    assert results["acc_new_texts"] in (0.0, 1.0)  # of one row
    saved = json.loads((tmp_path / "out" / "eval_results.json").read_text())
    assert saved["acc_new_texts"] == results["acc_new_texts"]


@pytest.mark.parametrize(("labels", "said"), [("€ {}", True), ("x{}", True), ("no", False)])
def test_labels_that_are_nearly_all_different_are_said(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture, labels: str, said: bool
) -> None:
    """Prices with their currency, or a column of names: 40 classes, none of them with two rows."""
    rows = "".join(f"kasa {tiny.WORDS[row % 9]} lote,{labels.format(row)}\n" for row in range(40))
    (tmp_path / "t.csv").write_text(f"sentence1,label\n{rows}bote,yes\n")
    run(bert, tmp_path, "--train_file", str(tmp_path / "t.csv"), "--do_train", "--model_type", "bert", "--dry_run")
    assert ("classes in 41 rows: is it the right --label_column?" in capsys.readouterr().err) == said


def test_rows_are_on_the_same_side_in_later_runs(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Another seed and a grown file: the dev rows of the later run are none that the model was trained on."""
    lines = [f"{tiny.WORDS[row % 9]} {tiny.WORDS[row // 9]},{'xy'[row % 2]}" for row in range(81)]
    for name, rows in (("t.csv", lines[:60]), ("grown.csv", lines)):
        (tmp_path / name).write_text("\n".join(["sentence1,label", *rows]) + "\n")
    run(bert, tmp_path, "--train_file", str(tmp_path / "t.csv"), "--model_type", "bert", "--seed", "7")
    record = json.loads((tmp_path / "out" / "config.json").read_text())["set_aside"]
    assert record == json.loads((tmp_path / "out" / "training_args.json").read_text())["set_aside"]
    model = tmp_path / "out"
    first = set(
        read_split(user_task(tmp_path / "t.csv", None, None, reading=Reading(set_aside=True)), None, "train").texts_a
    )
    later = Reading(set_aside=True, earlier=recorded_rows(model))
    assert not first & set(
        read_split(user_task(tmp_path / "grown.csv", None, None, reading=later), None, "dev").texts_a
    )
    capsys.readouterr()
    run(model, tmp_path / "later", "--train_file", str(tmp_path / "grown.csv"), "--do_eval")
    assert "WARN" not in capsys.readouterr().err
    run(model, tmp_path / "seen", "--validation_file", str(tmp_path / "t.csv"), "--do_eval")
    assert "was trained on rows of --validation_file" in capsys.readouterr().err


def test_a_model_of_the_hub_has_its_record_too(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration is found by name, not in a folder: the rows it was trained on are not evaluated unsaid."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    train = write(tmp_path / "t.csv", 60)
    files = ("--train_file", str(train), "--validation_file", str(write(tmp_path / "d.csv", 20)))
    run(bert, tmp_path, *files, "--model_type", "bert")
    stored, commit = tmp_path / "hub" / "models--user--small", "0" * 40
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(commit)
    shutil.copytree(tmp_path / "out", stored / "snapshots" / commit)
    monkeypatch.chdir(tmp_path)
    hub = ("--cache_dir", str(tmp_path / "hub"), "--train_file", str(train))
    for more in (("--do_eval",), ("--model_type", "bert", "--overwrite_output_dir")):
        capsys.readouterr()
        run(Path("user/small"), tmp_path / "later", *hub, *more)
        assert "user/small was trained on all rows of --train_file" in capsys.readouterr().err


def test_names_of_the_file_for_a_model_with_names(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train, dev = write(tmp_path / "t.csv", 30, "bad good"), write(tmp_path / "d.csv", 20, "0 1")
    files = ("--train_file", str(train), "--validation_file", str(write(tmp_path / "v.csv", 20, "bad good")))
    expected = run(bert, tmp_path, *files, "--model_type", "bert")
    model, later = tmp_path / "out", ("--validation_file", str(dev), "--do_eval")
    line = refused(capsys, model, tmp_path / "a", *later)
    assert "d.csv:2: label '0' is none of bad, good; --label_names gives the file's names in the order of" in line
    assert run(model, tmp_path / "b", *later, "--label_names", "0", "1") == pytest.approx(expected)
    config = json.loads((model / "config.json").read_text())
    names = {"id2label": {"0": "no praise", "1": "praise, much"}, "label2id": {"no praise": 0, "praise, much": 1}}
    (model / "config.json").write_text(json.dumps(config | names))
    run(model, tmp_path / "c", "--test_file", str(dev), "--do_predict")
    assert run(model, tmp_path / "d", *later, "--label_names", '0,"1"') == pytest.approx(expected)


def test_blank_texts_and_an_ignored_flag_are_said(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = ["kasa,x", ",y", "NaN,x", "lote,y", "bote kasa,x", "nan,y"]
    (tmp_path / "t.csv").write_text("sentence1,label\n" + "".join(f"{row}\n" for row in rows))
    dev = write(tmp_path / "d.csv", 20, "x y")
    files = (
        "--train_file",
        str(tmp_path / "t.csv"),
        "--validation_file",
        str(dev),
        "--dry_run",
        "--model_type",
        "bert",
    )
    lowers = lowers_case(load_tokenizer(bert))
    run(bert, tmp_path, *files, "--no-do_lower_case" if lowers else "--do_lower_case")
    text = capsys.readouterr().err
    assert "training data: 3 of 6 texts are empty or a word such as NaN" in text
    assert "dev data: 0 of" not in text
    assert "do_lower_case is ignored: the tokenizer of" in text


def test_home_and_an_output_that_cannot_print(bert: Path, tmp_path: Path) -> None:
    """In a process of its own, whose streams write ASCII."""
    train = write(tmp_path / "t.csv", 30, "schlecht gr\u00f6\u00dfer\u4e2d")
    words = [
        "--train_file=~/t.csv",
        "--validation_file",
        "~/t.csv",
        "--output_dir=~/out",
        "--dry_run",
        "--max_seq_length",
        "8",
    ]
    command = [sys.executable, str(Path(masked_run_glue.__file__)), "--model_name_or_path", str(bert), *words]
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "gr\\xf6\\xdfer\\u4e2d" in done.stderr
    assert train.is_file()
    assert not (tmp_path / "~").exists()


def test_escapes_instead_of_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    OneLineParser("a parser")
    print("\u00e9 \u2192", flush=True)
    assert written.getvalue() == b"\\xe9 \\u2192\n"


def test_weights_that_git_has_not_fetched(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = tmp_path / "model"
    shutil.copytree(bert, model)
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    line = refused(capsys, model, tmp_path, "--train_file", str(write(tmp_path / "t.csv", 30)))
    assert line.endswith("model.safetensors is a Git LFS pointer, not the file itself; run `git lfs pull`")
