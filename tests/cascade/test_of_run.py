"""`--cascade`: a run ends with a cascade of its models, and refuses before the training what cannot be one."""

from __future__ import annotations

import pytest
import tiny

import masked_run_glue
from emmental.cascade import load


def flags(tmp_path, bert_dir, task="sst-2", **sizes):
    data = tiny.write_task(tmp_path / task, task, **sizes)
    given = {"data_dir": data, "task_name": task, "model_name_or_path": bert_dir, "output_dir": tmp_path / "out"}
    given |= {"max_seq_length": 16, "feature_cache_dir": tmp_path / "cache", "max_steps": 2, "threads": 1}
    return [*(f"--{name}={value}" for name, value in given.items()), "--no_cuda", "--no-engines", "--no-pictures"]


def test_a_run_ends_with_a_cascade(tmp_path, bert_dir, capsys):
    made = flags(tmp_path, bert_dir, train=80, dev=40)
    masked_run_glue.main([*made, "--keep", "0.6", "0.3", "--cascade", "--changed", "0.2"])
    said = capsys.readouterr().out
    assert "cascade, 20 % may change (served)" in said
    assert str(tmp_path / "out" / "cascade") in said
    record = load(tmp_path / "out" / "cascade", threads=1).record
    assert {one["name"] for one in record["models"]} == {"bag of words", "keep-0.3", "keep-0.6", "dense"}
    assert record["models"][-1]["name"] == "dense"
    assert "accuracy" in record["measured"]
    assert record["calibration"]["texts"] <= 40


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        ("sst-2", ["--cascade"], "--cascade is calibrated on the dev rows: --changed 0.01 needs at least 373 texts"),
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
