"""Classes of models and tasks: matched by name, in the model's order, or refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from transformers import BertConfig

from emmental.errors import UserError
from emmental.tasks import (
    class_order,
    compute_metrics,
    evaluation_tasks,
    in_order_of,
    read_split,
    resolve_task,
    task_of_model,
    user_task,
)
from emmental.tasks.classes import classes_of_model, is_classifier


def config_of(*names: str, **others: object) -> BertConfig:
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    return BertConfig(**{**labels, **others})


@pytest.mark.parametrize(
    ("task", "names", "order"),
    [
        ("mnli", ["entailment", "neutral", "contradiction"], (1, 2, 0)),
        ("mnli", ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], (0, 2, 1)),
        ("mnli-mm", ["Neutral", "Entailment", "Contradiction"], (2, 1, 0)),
        ("ax", ["entailment", "neutral", "contradiction"], (1, 2, 0)),
        ("sst-2", ["POSITIVE", "NEGATIVE"], (1, 0)),
        ("sst-2", ["neg", "pos"], (0, 1)),
        ("sst-2", ["1", "0"], (1, 0)),
        ("mrpc", ["0", "1"], (0, 1)),
        ("mrpc", ["equivalent", "not-equivalent"], (1, 0)),
        ("mrpc", ["not equivalent", "Equivalent"], (0, 1)),
        ("qqp", ["duplicate", "not_duplicate"], (1, 0)),
        ("cola", ["acceptable", "unacceptable"], (1, 0)),
        ("wnli", ["entailment", "not_entailment"], (1, 0)),
        ("rte", ["not_entailment", "entailment"], (1, 0)),
        ("qnli", ["ENTAILMENT", "NOT_ENTAILMENT"], (0, 1)),
        ("sst-2", ["LABEL_0", "LABEL_1"], (0, 1)),
    ],
)
def test_outputs_are_matched_by_name(task: str, names: list[str], order: tuple[int, ...]) -> None:
    assert class_order(resolve_task(task), config_of(*names), "--model_name_or_path m") == order


@pytest.mark.parametrize(
    ("task", "names", "message"),
    [
        (
            "mnli",
            ["yes", "no", "maybe"],
            "m has the classes yes, no, maybe, --task_name mnli has contradiction, entailm",
        ),
        ("mnli", ["0", "1", "2"], "m has the classes 0, 1, 2, --task_name mnli has "),
        ("rte", ["0", "1"], "m has the classes 0, 1, --task_name rte has entailment, not_entailment; .*--label_names"),
        (
            "sst-2",
            ["a", "b", "c"],
            r"m has 3 outputs, --task_name sst-2 needs 2: a, b, c against negative, positive",
        ),
        ("sts-b", ["a", "b"], r"m has 2 outputs, --task_name sts-b needs 1: a, b against a score"),
        ("sst-2", ["score"], r"m has 1 outputs, --task_name sst-2 needs 2: score against negative, positive"),
        ("sst-2", ["neg", "negative"], "m has the classes neg, negative, --task_name sst-2 has negative, positive"),
        ("rte", ["x", "x"], "names a class twice: x, x"),
    ],
)
def test_what_does_not_match_is_refused_with_both_lists(task: str, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*{message}[^\n]*$"):
        class_order(resolve_task(task), config_of(*names), "--model_name_or_path m")


def test_label2id_that_contradicts_is_refused() -> None:
    config = config_of("negative", "positive", label2id={"negative": 1, "positive": 0})
    with pytest.raises(UserError, match=r"m: label2id in its config contradicts id2label, .* class 0 is 'negative'"):
        classes_of_model(config, "m")


@pytest.mark.parametrize("back", [None, {}, {"LABEL_0": 0, "LABEL_1": 1}])
def test_label2id_that_nobody_filled_in_says_nothing(back: dict | None) -> None:
    assert classes_of_model(config_of("b", "a", label2id=back), "m") == ("b", "a")


def test_names_that_only_label2id_has() -> None:
    assert classes_of_model(config_of("LABEL_0", "LABEL_1", label2id={"b": 1, "a": 0}), "m") == ("a", "b")


@pytest.mark.parametrize(
    ("names", "back", "message"),
    [
        (["a", "b"], {"a": 0, "b": 1, "c": 2}, "has classes that id2label lacks: c"),
        (["LABEL_0", "LABEL_1"], {"LABEL_0": 1, "LABEL_1": 0}, "contradicts id2label, .* class 0 is 'LABEL_0'"),
        (["a", "b"], ["a", "b"], "is not an object of names and numbers"),
        (["a", "b"], {"a": 0}, "contradicts id2label, .* class 1 is 'b'"),
        (["a", "b"], {"a": "x", "b": 1}, "contradicts id2label, .* class 0 is 'a'"),
    ],
)
def test_other_contradictions(names: list[str], back: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"m: label2id in its config {message}"):
        classes_of_model(config_of(*names, label2id=back), "m")


@pytest.mark.parametrize("back", [{"A": 0, "B": 1}, {"a": "0", "b": "1"}, {"a": 0, "b": 1, "bee": 1}])
def test_another_spelling_is_no_contradiction(back: dict) -> None:
    assert classes_of_model(config_of("a", "b", label2id=back), "m") == ("a", "b")


def test_numbered_names_in_another_order(caplog: pytest.LogCaptureFixture) -> None:
    config = config_of("LABEL_2", "LABEL_0", "LABEL_1", label2id={"LABEL_0": 1, "LABEL_1": 2, "LABEL_2": 0})
    assert class_order(resolve_task("mnli"), config, "m") == (2, 0, 1)
    with caplog.at_level(logging.INFO):
        in_order_of(resolve_task("mnli"), config, "m")
    assert caplog.messages == [
        "m does not name its classes; they are assumed to be in this order: LABEL_2 is neutral, LABEL_0 is "
        "contradiction, LABEL_1 is entailment"
    ]


def test_numbers_that_do_not_start_at_0() -> None:
    with pytest.raises(UserError, match=r"m: id2label in its config has the numbers 1, 2; 0, 1, ... are expected"):
        classes_of_model(config_of(id2label={1: "a", 2: "b"}, label2id=None), "m")


def test_label_names_say_which_is_which() -> None:
    task, config = resolve_task("rte"), config_of("no", "yes")
    assert class_order(task, config, "m", ["not_entailment", "entailment"]) == (1, 0)
    with pytest.raises(UserError, match="--label_names a, b are not the classes of the data, entailment, not_entail"):
        class_order(task, config, "m", ["a", "b"])
    named = config_of("entailment", "not_entailment")
    with pytest.raises(
        UserError, match="--label_names not_entailment, entailment contradicts m, whose outputs are ent"
    ):
        class_order(task, named, "m", ["not_entailment", "entailment"])


def test_a_model_without_names_is_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        task = in_order_of(resolve_task("mnli"), BertConfig(num_labels=3), "--model_name_or_path m")
    assert task == resolve_task("mnli")
    assert caplog.messages == [
        "--model_name_or_path m does not name its classes; they are assumed to be in this order: "
        "LABEL_0 is contradiction, LABEL_1 is entailment, LABEL_2 is neutral"
    ]


def test_case_tells_classes_apart_where_it_must(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("sentence1,label\na,True\nb,true\nc,TRUE\n")
    task = user_task(tmp_path / "train.csv", None, None)
    assert task.labels == ("TRUE", "True", "true")
    assert class_order(task, config_of("true", "TRUE", "True"), "m") == (2, 0, 1)


def test_the_models_order_rules_for_the_ids_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("sentence\tlabel\na\t0\nb\t1\n")
    task = in_order_of(resolve_task("sst-2"), config_of("POSITIVE", "NEGATIVE"), "m")
    assert (task.labels, task.names, task.positive_label) == (("1", "0"), ("positive", "negative"), "1")
    assert read_split(task, tmp_path, "train").labels == [1, 0]


def test_f1_is_that_of_the_positive_class_in_either_order() -> None:
    task = resolve_task("mrpc")
    predictions, labels = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 0, 1])
    turned = task.reordered((1, 0))
    # 2 true positives, 1 false one: precision 2/3, recall 1
    assert compute_metrics(task, predictions, labels)["f1"] == pytest.approx(0.8)
    assert compute_metrics(turned, 1 - predictions, 1 - labels) == compute_metrics(task, predictions, labels)


def test_both_dev_sets_of_mnli_have_one_order() -> None:
    task = in_order_of(resolve_task("mnli"), config_of("entailment", "neutral", "contradiction"), "m")
    assert [each.labels for each in evaluation_tasks(task)] == [("entailment", "neutral", "contradiction")] * 2


def test_own_files_without_a_training_file_have_the_classes_of_the_model(tmp_path: Path) -> None:
    dev = tmp_path / "dev.csv"
    dev.write_text("sentence1,label\na,no\nb,yes\n")
    assert task_of_model(config_of("yes", "no", "maybe"), "m", dev, None).labels == ("yes", "no", "maybe")
    assert task_of_model(BertConfig(num_labels=2), "m", dev, None).labels == ("no", "yes")
    assert task_of_model(BertConfig(num_labels=1), "m", dev, None).is_regression
    with pytest.raises(UserError, match=r"m has 3 outputs, --task_name custom needs 2: LABEL_0, .* against no, yes"):
        task_of_model(BertConfig(num_labels=3), "m", dev, None)


def test_which_models_have_a_classifier() -> None:
    assert is_classifier(BertConfig(architectures=["MaskedBertForSequenceClassification"]))
    assert not is_classifier(BertConfig(architectures=["BertForMaskedLM"], id2label={0: "a", 1: "b"}))
    assert not is_classifier(BertConfig())
    assert is_classifier(config_of("a", "b"))


def test_a_model_of_several_labels_a_text_is_refused() -> None:
    config = config_of("not_equivalent", "equivalent", problem_type="multi_label_classification")
    for read in (class_order, in_order_of):
        with pytest.raises(UserError, match="--teacher_name_or_path x has the problem_type multi_label_class"):
            read(resolve_task("mrpc"), config, "--teacher_name_or_path x")
    with pytest.raises(UserError, match="several labels a text are not supported"):
        task_of_model(config, "--model_name_or_path x", None, "rows.csv")
