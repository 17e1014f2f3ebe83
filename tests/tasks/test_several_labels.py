"""Own files whose rows have several labels: how they are read, measured, described and predicted."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig

from emmental.errors import UserError
from emmental.tasks import (
    Split,
    always_the_same,
    compute_metrics,
    predictions_from_logits,
    read_split,
    task_of_model,
    user_task,
    write_predictions,
)
from emmental.tasks.bag_of_words import bag_of_words
from emmental.tasks.own_files import Reading
from emmental.tasks.task import Task

METRICS = ("micro_f1", "macro_f1", "average_precision", "subset_accuracy")
SEPARATED = Reading(label_separator="|")
COLUMNS = Reading(label_columns=("a", "b", "c"))
FORMS = {
    "t.jsonl": (
        '{"sentence1": "x", "label": ["b", "a"]}\n{"sentence1": "y", "label": []}\n'
        '{"sentence1": "z", "label": ["c"]}\n',
        Reading(),
    ),
    "t.csv": ("sentence1,label\nx,b|a\ny,\nz,c\n", SEPARATED),
    "columns.csv": ("sentence1,a,b,c\nx,1,1,0\ny,0,0,0\nz,0,0,1\n", COLUMNS),
    "true.jsonl": (
        '{"sentence1": "x", "a": true, "b": 1, "c": 0.0}\n{"sentence1": "y", "a": false, "b": 0, "c": 0}\n'
        '{"sentence1": "z", "a": 0, "b": 0, "c": 1}\n',
        COLUMNS,
    ),
    "pandas.csv": ("sentence1,label\nx,\"['b', 'a']\"\ny,[]\nz,['c']\n", Reading()),
    "json.tsv": ('sentence1\tlabel\nx\t["b", "a"]\ny\t[]\nz\tc\n', Reading()),
    "lists.csv": ("sentence1,label\nx,\"['b', 'a']\"\ny,[]\nz,c\n", SEPARATED),
    "odd.csv": ("sentence1,label\nx,| b |a|a\ny, \nz,c|\n", SEPARATED),
}


def written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def own(labels: tuple[str, ...] = ("a", "b")) -> Task:
    task = Task("custom", labels, METRICS, "micro_f1", "predictions.tsv", None, None, None, several=True)
    assert task.positive_label is None
    return task


@pytest.mark.parametrize("name", FORMS)
def test_three_forms_give_the_same_labels(tmp_path: Path, name: str) -> None:
    content, reading = FORMS[name]
    task = user_task(written(tmp_path, name, content), None, None, reading=reading)
    assert (task.labels, task.several, task.num_labels, task.positive_label) == (("a", "b", "c"), True, 3, None)
    assert task.primary_metric == "micro_f1"
    assert task.metrics == METRICS
    assert read_split(task, None, "train").labels == [(1, 1, 0), (0, 0, 0), (0, 0, 1)]


def test_parquet_with_the_names_of_the_library_datasets(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"sentence1": ["x", "y", "z"], "label": [[1, 0], [], [2]]})
    path = tmp_path / "t.parquet"
    parquet.write_table(table, path)
    assert user_task(path, None, None).labels == ("0", "1", "2")
    for form in ({"feature": {"_type": "ClassLabel", "names": ["c", "a", "b"]}, "_type": "Sequence"},):
        features = {"sentence1": {"_type": "Value"}, "label": form}
        info = json.dumps({"info": {"features": features}})
        parquet.write_table(table.replace_schema_metadata({"huggingface": info}), path)
        task = user_task(path, None, None)
        assert task.labels == ("c", "a", "b")
        assert read_split(task, None, "train").labels == [(1, 1, 0), (0, 0, 0), (0, 0, 1)]


@pytest.mark.parametrize(
    ("name", "content", "reading", "message"),
    [
        (
            "t.jsonl",
            '{"sentence1": "x", "label": ["a"]}\n{"sentence1": "y", "label": null}\n',
            Reading(),
            ":2: .*null",
        ),
        ("t.jsonl", '{"sentence1": "x", "label": ["a", "b"]}\n{"sentence1": "y"}\n', Reading(), ":2: its columns are"),
        ("t.csv", "sentence1,label\nx,a|b\ny,NaN\n", SEPARATED, r":3: the labels are missing \('NaN'\)"),
        ("t.csv", "sentence1,a,b,c\nx,1,0,\n", COLUMNS, r":2: label 'c' is missing"),
        ("t.csv", "sentence1,a,b,c\nx,1,0,2\n", COLUMNS, r":2: label 'c' is '2'; .*accepts 0 and 1"),
        ("t.csv", "sentence1,a,b\nx,1,0\n", COLUMNS, r":1: no column named 'c'"),
        (
            "t.csv",
            "sentence1,label\nx,[a b]\ny,[b]\n",
            Reading(),
            r":2: label '\[a b\]' is no list of labels; \[\"a\"",
        ),
        ("t.jsonl", '{"sentence1": "x", "label": [["a"]]}\n', Reading(), r":1: 'label' is a list; a string"),
        ("t.csv", "sentence1,label\nx,a\ny,a|\n", SEPARATED, ": 1 different labels; two are needed"),
        ("t.csv", "sentence1,label\nx,a|b\ny,b\n", Reading(), r"--label_separator '\|' trains several"),
        ("t.csv", "sentence1,label\nx,a\ny,b\nz,\"['a', 'b']\"\n", Reading(), ":4: label .* is that of 1 of 3 rows"),
    ],
)
def test_what_is_refused_in_one_line(tmp_path: Path, name: str, content: str, reading: Reading, message: str) -> None:
    if message.startswith("--label_sep"):
        content += "z,a\nu,b\n"
    with pytest.raises(UserError, match=rf"^--train_file [^\n]*{message}[^\n]*$"):
        user_task(written(tmp_path, name, content), None, None, reading=reading)


def test_lists_in_one_file_and_single_labels_in_the_other(tmp_path: Path) -> None:
    train = written(tmp_path, "t.jsonl", FORMS["t.jsonl"][0])
    dev = written(tmp_path, "d.jsonl", '{"sentence1": "x", "label": "a"}\n')
    with pytest.raises(UserError, match="--train_file has lists of labels, --validation_file has single labels"):
        user_task(train, dev, None)
    unknown = written(tmp_path, "u.jsonl", '{"sentence1": "x", "label": ["a", "d"]}\n')
    with pytest.raises(UserError, match=r"--validation_file .*u\.jsonl:1: label 'd' is none of a, b, c"):
        read_split(user_task(train, unknown, None), None, "dev")


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("a|b", r"t\.csv:502: 1 of 1000 rows have several labels or none, such as a, b here, all others exactly one"),
        ("", r"t\.csv:502: 1 of 1000 rows have several labels or none, such as none here"),
        ("a", "all 1000 rows have exactly one label"),
    ],
)
def test_several_labels_by_accident_are_said(tmp_path: Path, caplog, odd: str, said: str) -> None:
    lines = [f"text {row},{'ab'[row % 2]}" for row in range(1000)]
    lines[500] = f"text 500,{odd}"
    path = written(tmp_path, "t.csv", "sentence1,label\n" + "\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        user_task(path, None, None, reading=SEPARATED)
    assert [record for record in caplog.records if "if a row has one class" in record.getMessage()]
    assert caplog.text.count(said.replace("\\", "")) == 1


def test_metrics_by_hand() -> None:
    """Label a: one right, one wrong claim; label b: one right, one missed. The threshold is 0.5, not reached."""
    predictions = np.array([[0.9, 0.2], [0.6, 0.8], [0.5, 0.5]])
    labels = np.array([[1, 0], [0, 1], [0, 1]])
    found = compute_metrics(own(), predictions, labels)
    # a: precision 1 of 2, recall 1 of 1; b: precision 1 of 1, recall 1 of 2. Micro: 2 right of 3 claims and 3 labels.
    # Average precision: a is first in its order; b holds the first two places.
    assert found == pytest.approx(
        {"micro_f1": 2 / 3, "macro_f1": 2 / 3, "average_precision": 1.0, "subset_accuracy": 1 / 3}
    )
    # Order of b by probability: 0.8 (wrong), 0.5 (right), 0.2 (right): (1 / 2 + 2 / 3) / 2.
    worse = compute_metrics(own(), predictions, np.array([[1, 1], [0, 0], [0, 1]]))
    assert worse["average_precision"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    without = compute_metrics(own(), predictions, np.array([[1, 0], [0, 0], [0, 0]]))
    assert without["average_precision"] == 1.0  # b, which no row has, does not count
    assert compute_metrics(own(), np.zeros((2, 2)), np.zeros((2, 2)))["micro_f1"] == 0.0


def test_probabilities_are_sigmoids() -> None:
    found = predictions_from_logits(own(), np.array([[math.log(3), 0.0]], np.float32))
    assert found == pytest.approx(np.array([[0.75, 0.5]]))
    assert own().kind.entropy(np.zeros((3, 2), np.float32)) == pytest.approx(math.log(2))
    assert own().kind.entropy(np.full((3, 2), -3e4, np.float32)) == 0.0


def test_the_best_constant_answer() -> None:
    """Of four rows, a is in three and b in one. Only a: 2 * 3 / (4 + 4); both: 2 * 4 / (8 + 4). The first is best."""
    known = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [np.nan, np.nan]])
    labels = np.array([[1, 0], [0, 1]])  # one right of two claims and two labels
    assert always_the_same(own(), known, labels) == {"micro_f1": 0.5}
    kind = own().kind
    assert kind.beats_constant(np.array([[1.0, -1], [1, -1], [1, 1], [-1, -1]]), known[:4])
    assert not kind.beats_constant(-np.ones((4, 2)), known[:4])


def test_a_collapse_to_one_set() -> None:
    kind, labels = own().kind, np.array([[0, 0]] * 9 + [[1, 0]])
    assert kind.collapsed(own(), np.array([[0.9, 0.1], [0.1, 0.1]])) is None
    same = kind.same_answer(own(), kind.collapsed(own(), np.full((10, 2), 0.4)), labels)
    assert (same.text, same.share) == ("no label", 0.9)
    assert kind.same_answer(own(), kind.collapsed(own(), np.ones((10, 2))), labels).text == "labels a, b"
    assert kind.same_label(own(), labels) is None
    assert kind.same_label(own(), labels[:9]) == "with the same labels, no label"


def test_labels_and_every_probability_in_the_file(tmp_path: Path) -> None:
    logits = np.array([[math.log(3), 0.0], [1e9, math.log(3)]])
    path = write_predictions(tmp_path, own(), predictions_from_logits(own(), logits), ["0", "1"], logits)
    assert path.read_text() == (
        "index\tprediction\tprobability of a\tprobability of b\n"
        '0\t["a"]\t0.750000\t0.500000\n'
        '1\t["a", "b"]\t1.000000\t0.750000\n'
    )


def test_a_bag_of_words_of_each_label_against_the_rest() -> None:
    words = {"sun": (1, 0, 0), "rain": (0, 1, 0), "sun rain": (1, 1, 0), "tree": (0, 0, 0)}
    train = Split([*words] * 20, None, [*words.values()] * 20, [""] * 80)
    floor = bag_of_words(
        own(("a", "b", "never")), train, Split(["sun", "tree"], None, [(1, 0, 0), (0, 0, 0)], ["", ""])
    )
    assert floor.metrics["micro_f1"] == 1.0
    assert floor.predictions[:, 2].tolist() == [0.0, 0.0]  # no row has it
    nothing = bag_of_words(
        own(), Split(["", ""], None, [(1, 0), (1, 1)], ["", ""]), Split(["x"], None, [(1, 0)], [""])
    )
    assert nothing.predictions.tolist() == [[1.0, 0.5]]  # their shares in training


def test_the_task_of_a_model(tmp_path: Path) -> None:
    """Its labels in its order; a model of one class is refused for such data, and the other way round."""
    several = BertConfig(
        id2label={0: "c", 1: "B", 2: "a"},
        label2id={"c": 0, "B": 1, "a": 2},
        problem_type="multi_label_classification",
        architectures=["BertForSequenceClassification"],
    )
    lists = written(tmp_path, "t.jsonl", FORMS["t.jsonl"][0])
    task = task_of_model(several, "--model_name_or_path m", lists, None)
    assert (task.labels, task.names, task.several) == (("c", "b", "a"), ("c", "B", "a"), True)
    assert read_split(task, None, "dev").labels == [(0, 1, 1), (0, 0, 0), (1, 0, 0)]
    texts = written(tmp_path, "p.csv", "sentence1\nx\n")
    assert task_of_model(several, "--model_name_or_path m", None, texts).several
    single = written(tmp_path, "s.csv", "sentence1,label\nx,a\ny,b\n")
    with pytest.raises(
        UserError, match="m has the problem_type multi_label_classification: it gives several labels a"
    ):
        task_of_model(several, "--model_name_or_path m", single, None)
    one = BertConfig(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    with pytest.raises(UserError, match="m gives one class a row, and the data has several labels a row"):
        task_of_model(one, "--model_name_or_path m", lists, None)
    with pytest.raises(UserError, match="m gives a score a row, and the data has several labels a row"):
        task_of_model(BertConfig(num_labels=1), "--model_name_or_path m", lists, None)


def test_no_positive_label(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "sentence1,label\nx,a|b\ny,\n")
    with pytest.raises(UserError, match="--positive_label a is for two classes; this task has several labels a row"):
        user_task(path, None, None, reading=Reading(label_separator="|", positive_label="a"))
