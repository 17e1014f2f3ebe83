"""The measurement of data preparation."""

from __future__ import annotations

import tiny

from benchmarks import data, generated
from emmental.data import load_features
from emmental.tasks import resolve_task


def test_generated_pairs():
    results = data.main(["--lines=300", "--repeats=2", "--threads=1"])
    assert results["rows"] == 300
    assert results["cold_seconds"]["count"] == results["warm_seconds"]["count"] == 2
    assert set(results["padding"]) == {"8", "16", "32", "64"}
    for row in results["padding"].values():
        assert 0 < row["grouped"] < row["in_order"] < 1


def test_a_task_of_the_user(tmp_path, bert_dir):
    tiny.write_task(tmp_path / "task", "mrpc", train=40)
    given = [f"--data_dir={tmp_path / 'task'}", "--task_name=mrpc", f"--model={bert_dir}", "--max_seq_length=16"]
    assert data.main([*given, "--repeats=1", "--threads=1"])["rows"] == 40
    assert data.main([*given, "--repeats=1", "--threads=1", "--copies=3"])["rows"] == 120


def test_generated_sentences_have_the_length_asked_for(tmp_path):
    generated.write_sentences(tmp_path, 5, (6, 6))
    task = resolve_task("sst-2")
    rows = load_features(task, tmp_path, "train", generated.tokenizer(), 128, tmp_path / "cache", show_progress=False)
    assert rows.lengths.tolist() == [8] * 5  # with [CLS] and [SEP]
