"""Parquet: own files, and GLUE as the Hub has it, with the same rows as the `.tsv` files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import tiny

from emmental.data import load_features
from emmental.errors import UserError
from emmental.tasks import read_split, resolve_task, user_task
from emmental.tasks.files import read_table

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

# task -> folder on the Hub, its columns for the texts, the classes of 0, 1, ...; splits are named below
HUB = {
    "cola": ("cola", ["sentence"], ["0", "1"]),
    "sst-2": ("sst2", ["sentence"], ["0", "1"]),
    "mrpc": ("mrpc", ["sentence1", "sentence2"], ["0", "1"]),
    "sts-b": ("stsb", ["sentence1", "sentence2"], None),
    "qqp": ("qqp", ["question1", "question2"], ["0", "1"]),
    "mnli": ("mnli", ["premise", "hypothesis"], ["entailment", "neutral", "contradiction"]),
    "mnli-mm": ("mnli", ["premise", "hypothesis"], ["entailment", "neutral", "contradiction"]),
    "qnli": ("qnli", ["question", "sentence"], ["entailment", "not_entailment"]),
    "rte": ("rte", ["sentence1", "sentence2"], ["entailment", "not_entailment"]),
    "wnli": ("wnli", ["sentence1", "sentence2"], ["0", "1"]),
}
SPLITS = {"train": "train", "dev": "validation", "test": "test"}
SUFFIX = {"mnli": "_matched", "mnli-mm": "_mismatched"}


def write(path: Path, columns: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def write_hub(folder: Path, name: str, data_dir: Path, shards: int = 1) -> None:
    """The rows of a task's `.tsv` files in the Hub's layout."""
    task, (place, texts, codes) = resolve_task(name), HUB[name]
    for split, prefix in SPLITS.items():
        rows = read_split(task, data_dir, split)
        values = [rows.texts_a] if rows.texts_b is None else [rows.texts_a, rows.texts_b]
        label = [-1] * len(rows.texts_a)
        if rows.labels is not None:
            label = rows.labels if codes is None else [codes.index(task.labels[number]) for number in rows.labels]
        columns = dict(zip(texts, values, strict=True)) | {"label": label, "idx": list(range(len(label)))}
        prefix = prefix if split == "train" else prefix + SUFFIX.get(name, "")
        for shard in range(shards):
            part = {
                key: value[shard::1] if shards == 1 else _part(value, shard, shards) for key, value in columns.items()
            }
            write(folder / place / f"{prefix}-{shard:05}-of-{shards:05}.parquet", part)


def _part(values: list, shard: int, shards: int) -> list:
    size = -(-len(values) // shards)
    return values[shard * size : (shard + 1) * size]


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("name", HUB)
def test_the_hubs_layout_gives_the_same_features(tmp_path: Path, name: str, shards: int) -> None:
    written = "mnli" if name == "mnli-mm" else name
    if written not in tiny.TASK_NAMES:
        pytest.skip(f"no tiny {written}")
    data = tiny.write_task(tmp_path / "tsv", written)
    write_hub(tmp_path / "hub", name, data, shards)
    task, place = resolve_task(name), tmp_path / "hub" / HUB[name][0]
    for split in SPLITS:
        sets = [
            load_features(task, folder, split, tiny.tokenizer(), 16, tmp_path / f"cache-{i}", show_progress=False)
            for i, folder in enumerate((data, tmp_path / "hub", place))
        ]
        one, *others = sets
        for other in others:
            assert other.indices == one.indices
            assert (other.labels is None) == (one.labels is None)
            for row in range(len(one)):
                assert other[row]["input_ids"].tolist() == one[row]["input_ids"].tolist()
                assert other[row].get("label") == one[row].get("label")


def test_faults_of_the_hubs_layout(tmp_path: Path) -> None:
    task = resolve_task("rte")
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, -1], "idx": [0, 1]}
    path = write(tmp_path / "rte" / "train-00000-of-00001.parquet", columns)
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet:2: label -1 where 0 to 1 are expected"):
        read_split(task, tmp_path, "train")
    path.rename(path.with_name("train-00000-of-00002.parquet"))
    with pytest.raises(UserError, match=r"^--data_dir .*: 1 of 2 files train-\*\.parquet are there"):
        read_split(task, tmp_path, "train")
    with pytest.raises(UserError, match=r"^--data_dir .*: dev\.tsv is missing"):
        read_split(task, tmp_path, "dev")


def test_own_files(tmp_path: Path) -> None:
    columns = {
        "sentence1": ["a", "", "c"],
        "label": ["x", "y", "x"],
        "more": [[1], [2], [3]],
        "index": ["n1", "n2", "n3"],
    }
    task = user_task(write(tmp_path / "t.parquet", columns), None, None)
    split = read_split(task, None, "train")
    assert (task.labels, split.texts_a, split.labels) == (("x", "y"), ["a", "", "c"], [0, 1, 0])
    assert split.indices == ["n1", "n2", "n3"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sentence1": ["a", "b"], "label": ["x", None]}, r":2: 'label' is missing \(null\)"),
        ({"sentence1": ["a", "b"], "label": [1.5, float("nan")]}, r":2: 'label' is missing \(NaN\)"),
        ({"sentence1": ["a", None], "label": ["x", "y"]}, r":2: 'sentence1' is missing \(null\)"),
        (
            {"sentence1": ["a", "b"], "label": [["x"], ["y", None]]},
            r":2: 'label' is missing \(null\)",
        ),
        ({"text": ["a"], "target": ["x"]}, r": no column named sentence1 or .*; the columns are text, target"),
        ({"sentence1": [], "label": []}, r": no rows"),
    ],
)
def test_faults_of_own_files(tmp_path: Path, columns: dict, message: str) -> None:
    with pytest.raises(UserError, match=rf"^--train_file [^\n]*t\.parquet{message}[^\n]*$"):
        user_task(write(tmp_path / "t.parquet", columns), None, None)


def test_no_parquet_and_no_pyarrow_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_text(json.dumps({"sentence1": "a"}))
    with pytest.raises(UserError, match=r"^--train_file [^\n]*t\.parquet: cannot be read as parquet \([^\n]*$"):
        user_task(tmp_path / "t.parquet", None, None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"t\.parquet: parquet needs pyarrow; install it with `pip install pyarrow`"):
        read_table(tmp_path / "t.parquet", "parquet", keys=("a",))
