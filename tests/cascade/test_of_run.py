"""`--cascade`: a run ends with a cascade of its models, and refuses before the training what cannot be one."""

from __future__ import annotations

import csv
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
from tiny_cascade import rows as cascade_rows

import masked_run_glue
from emmental.cascade import building, load, of_run
from emmental.cascade.of_run import warn_of_unknown_training
from emmental.reporting import page
from emmental.reporting.forms import training
from emmental.tasks import read_held_back, read_split, resolve_task, unlabelled_task
from emmental.tasks.set_aside import row_places


def flags(tmp_path, bert_dir, task="sst-2", **sizes):
    data = tiny.write_task(tmp_path / task, task, **sizes)
    given = {"data_dir": data, "task_name": task, "model_name_or_path": bert_dir, "output_dir": tmp_path / "out"}
    given |= {"max_seq_length": 16, "feature_cache_dir": tmp_path / "cache", "max_steps": 2, "threads": 1}
    return [*(f"--{name}={value}" for name, value in given.items()), "--no_cuda", "--no-engines", "--no-pictures"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, bert_dir):
    """A finished run, and what it said. Its dev rows are other rows than those that calibrate."""
    place = tmp_path_factory.mktemp("run")
    made = flags(place, bert_dir, train=100, dev=30)
    said, told = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(told), pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "stage_engines", lambda engine: ["onnx"])  # the others take long to write
        masked_run_glue.main([*made, "--keep", "0.6", "0.3", "--cascade", "--changed", "0.2"])
    return place, said.getvalue(), told.getvalue()


def test_a_run_ends_with_a_cascade(run):
    place, said, _ = run
    assert "cascade, 20 % may change (served)" in said
    assert said.splitlines()[-1] == str(place / "out" / "cascade")
    record = load(place / "out" / "cascade", threads=1).record
    assert {one["name"] for one in record["models"]} == {"bag of words", "keep-0.3", "keep-0.6", "dense"}
    assert record["models"][-1]["name"] == "dense"


def test_it_is_calibrated_on_training_rows_that_no_phase_saw(run):
    """A fifth of 100 rows; the dev rows give the accuracies."""
    place, _, told = run
    args = json.loads((place / "out" / "training_args.json").read_text())
    task = resolve_task("sst-2")
    whole = read_split(task, place / "sst-2", "train")
    places = row_places(whole.texts_a)
    limit = args["set_aside"]["held_back_from"]
    held_back = {text for text, at in zip(whole.texts_a, places, strict=True) if at >= limit}
    count = int((places >= limit).sum())
    assert 14 <= count <= 30
    record = load(place / "out" / "cascade", threads=1).record
    assert record["calibration"]["texts"] == count
    assert record["judged_on"] == 30
    assert f"{count} of the rows are held back from all training, by a hash of their text" in told
    assert f"training data: {100 - count} rows" in told
    known = replace(task, train=replace(task.train, held_back_from=limit))
    assert not held_back & {*read_split(known, place / "sst-2", "train").texts_a}
    assert {*read_held_back(known, place / "sst-2").texts_a} == held_back
    for model in ("", "dense", "keep-0.6"):
        config = json.loads((place / "out" / model / "config.json").read_text())
        assert config["set_aside"]["held_back_from"] == limit


def test_the_accuracy_is_that_of_the_trainer(run):
    """The dense model in ONNX Runtime has the accuracy on the dev rows that the trainer's table says."""
    place, _, _ = run
    summary = json.loads((place / "out" / "summary.json").read_text())
    trained = {one["name"]: one["metric"] for one in summary["compared"]}
    rows = {one["name"]: one for one in summary["cascade"]}
    assert rows["dense"]["accuracy"] == pytest.approx(trained["dense"], abs=1 / 30)
    assert rows["dense"]["changed"] == 0
    assert [*rows][-1] == "cascade, 20 % may change"
    record = load(place / "out" / "cascade", threads=1).record
    assert rows["cascade, 20 % may change"]["milliseconds"] == record["measured"]["milliseconds"]


def test_the_card_and_the_page_show_it(run):
    place, _, _ = run
    card = (place / "out" / "README.md").read_text()
    assert "## Cascade" in card
    assert "| cascade, 20 % may change | " in card
    assert "![answers changed and accuracy over milliseconds](cascade/cascade.png)" in card
    assert (place / "out" / "cascade" / "cascade.png").is_file()
    shown = page.cascade_of({"training": training(place / "out")})
    names = [row[0] for row in shown["rows"]]
    assert {*names[:-1]} == {"bag of words, words", "keep-0.3, onnx", "keep-0.6, onnx", "dense, onnx"}
    assert names[-2:] == ["dense, onnx", "cascade, 20 % may change"]
    assert "20 %" in shown["note"]


def test_the_same_command_finds_its_run_again(run, bert_dir, capsys, monkeypatch):
    place, _, _ = run
    monkeypatch.setattr(building, "stage_engines", lambda engine: ["onnx"])
    made = flags(place, bert_dir, train=100, dev=30)
    masked_run_glue.main([*made, "--keep", "0.6", "0.3", "--cascade", "--changed", "0.2"])
    assert "cascade, 20 % may change (served)" in capsys.readouterr().out


def test_a_run_that_held_nothing_back_is_another_run(run, bert_dir, capsys):
    place, _, _ = run
    with pytest.raises(SystemExit):
        masked_run_glue.main([*flags(place, bert_dir, train=100, dev=30), "--keep", "0.6", "0.3"])
    assert "cascade True -> False" in capsys.readouterr().err


def test_a_model_that_has_seen_the_rows_is_refused(run, tmp_path, bert_dir, capsys):
    """The dense model of a run with a cascade may start another; that of one without may not."""
    place, _, _ = run
    made = [*flags(place, bert_dir, train=100, dev=30), f"--output_dir={tmp_path / 'out'}", "--cascade", "--dry_run"]
    seen = [f"--train_file={tmp_path / 'train.csv'}", f"--validation_file={tmp_path / 'dev.csv'}"]
    for name, rows in (("train", cascade_rows(100, 1)), ("dev", cascade_rows(30, 2))):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("sentence1", "label"), *rows])
    own = [one for one in made if "data_dir" not in one and "task_name" not in one] + seen + ["--changed", "0.2"]
    first = tmp_path / "first"
    masked_run_glue.main(
        [*(one for one in own if one not in ("--cascade", "--dry_run", "--changed", "0.2")), f"--output_dir={first}"]
    )
    capsys.readouterr()
    with pytest.raises(SystemExit):
        masked_run_glue.main([*own, f"--model_name_or_path={first / 'dense'}"])
    assert "was trained on the rows that would be held back" in capsys.readouterr().err
    masked_run_glue.main([*made, "--changed", "0.2", f"--model_name_or_path={place / 'out' / 'dense'}"])
    assert "are held back from all training" in capsys.readouterr().err


def test_a_fine_tuned_model_without_a_record_is_warned_of(run, tmp_path, monkeypatch):
    """Nobody knows what it was trained on. A dense training of the run itself needs no warning."""
    place, _, _ = run
    (tmp_path / "config.json").write_text("{}")
    for dense_comes_first, model, warned in (
        (False, tmp_path, True),
        (True, tmp_path, False),
        (False, place / "out", False),
    ):
        said: list[str] = []
        monkeypatch.setattr(of_run.logger, "warning", lambda text, *_, said=said: said.append(text))
        phases = [SimpleNamespace(follows_dense=not dense_comes_first)]
        warn_of_unknown_training(SimpleNamespace(cascade=True, phases=phases, model_name_or_path=str(model)))
        assert ["nothing records which rows" in text for text in said] == [True] * warned


def test_more_text_without_labels_has_none_of_the_rows_held_back(run, tmp_path):
    place, _, _ = run
    limit = json.loads((place / "out" / "training_args.json").read_text())["set_aside"]["held_back_from"]
    task = resolve_task("sst-2")
    known = replace(task, train=replace(task.train, held_back_from=limit))
    whole = read_split(task, place / "sst-2", "train")
    (tmp_path / "more.txt").write_text("\n".join(whole.texts_a))
    more = read_split(unlabelled_task(tmp_path / "more.txt", known), None, "test")
    assert {*more.texts_a} == {*read_split(known, place / "sst-2", "train").texts_a}


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        (
            "sst-2",
            ["--cascade"],
            "--cascade --changed 0.01: 373 training rows must be held back, at most half of all: it takes 746",
        ),
        ("sts-b", ["--cascade", "--changed", "0.2"], "--cascade needs classes"),
        ("sst-2", ["--changed", "0.2"], "--changed accepts a share below 1, with --cascade"),
        ("sst-2", ["--cascade", "--changed", "1.5"], "--changed accepts a share below 1"),
        ("sst-2", ["--cascade", "--do_train"], "--cascade needs --do_train and --do_eval"),
        ("sst-2", ["--cascade", "--changed", "0.2", "--model_type", "bert"], "this run makes a single model"),
    ],
)
def test_what_cannot_be_a_cascade_is_refused_first(task, more, message, tmp_path, bert_dir, capsys):
    with pytest.raises(SystemExit) as ended:
        masked_run_glue.main([*flags(tmp_path, bert_dir, task, train=40, dev=40), *more])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
