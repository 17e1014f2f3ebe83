from __future__ import annotations

import logging
import math

import numpy as np
import pytest

from emmental.tasks.glue import TASKS
from emmental.tasks.metrics import (
    always_the_same,
    class_shares,
    collapsed_to_one_class,
    compute_metrics,
    prediction_entropy,
    predictions_from_logits,
)
from emmental.tasks.task import Layout, Task

PREDICTIONS, LABELS = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])


def own(labels: tuple[str, ...]) -> Task:
    layout = Layout(("x.tsv",), "sentence1", label="label")
    return Task("custom", labels, ("acc", "f1"), "acc", "predictions.tsv", layout, layout, None)


def test_accuracy_and_f1_by_hand() -> None:
    # Two true positives, one false positive, one false negative: F1 = 2 * 2 / (2 * 2 + 1 + 1).
    expected = {"acc": 0.6, "f1": 2 / 3, "acc_and_f1": (0.6 + 2 / 3) / 2}
    assert compute_metrics(TASKS["mrpc"], PREDICTIONS, LABELS) == pytest.approx(expected)
    assert compute_metrics(TASKS["rte"], PREDICTIONS, LABELS) == {"acc": 0.6}
    assert compute_metrics(own(("a", "b")), PREDICTIONS, LABELS) == pytest.approx({"acc": 0.6, "f1": 2 / 3})


def test_matthews_by_hand() -> None:
    # TP 2, TN 1, FP 1, FN 1: (2 * 1 - 1 * 1) / sqrt(3 * 3 * 2 * 2).
    assert compute_metrics(TASKS["cola"], PREDICTIONS, LABELS) == pytest.approx({"mcc": 1 / 6})
    assert compute_metrics(TASKS["cola"], np.ones(3, int), np.array([1, 0, 1])) == {"mcc": 0.0}


def test_mnli_keys() -> None:
    predictions, labels = np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0])
    assert compute_metrics(TASKS["mnli"], predictions, labels) == {"mnli/acc": 0.75}
    assert compute_metrics(TASKS["mnli-mm"], predictions, labels) == {"mnli-mm/acc": 0.75}


def test_macro_f1_of_three_classes_by_hand() -> None:
    # F1 of the classes: 2/3 (one of two found), 1, 2/3 (one right of two claims).
    scores = compute_metrics(own(("a", "b", "c")), np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0]))
    assert scores == pytest.approx({"acc": 0.75, "f1": (2 / 3 + 1 + 2 / 3) / 3})


def test_one_class_only() -> None:
    zeros = np.zeros(3, int)
    assert compute_metrics(TASKS["mrpc"], zeros, zeros) == {"acc": 1.0, "f1": 0.0, "acc_and_f1": 0.5}


def test_correlations_by_hand() -> None:
    # Deviations (-1, 0, 1) and (-2, -1, 3): 5 / sqrt(2 * 14); the ranks agree.
    scores = compute_metrics(TASKS["sts-b"], np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 5.0]))
    pearson = 5 / math.sqrt(28)
    errors = {"rmse": math.sqrt((1 + 1 + 4) / 3), "mae": 4 / 3}
    assert scores == pytest.approx({"pearson": pearson, "spearmanr": 1.0, "corr": (pearson + 1.0) / 2, **errors})


def test_what_the_same_answer_for_every_row_reaches() -> None:
    known, labels = np.array([10.0, 20.0, np.nan], np.float32), np.array([12.0, 15.0, 21.0], np.float32)
    same = always_the_same(own(()), known, labels)  # 15 for each: 3, 0 and 6 off
    assert same == pytest.approx({"rmse": math.sqrt(45 / 3), "mae": 3.0})
    assert always_the_same(own(("a", "b")), np.array([1, 1, 0, -100]), np.array([0, 1, 1, 1])) == {"acc": 0.75}


def test_what_accuracy_hides_if_one_class_has_most_rows() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    all_first, half = np.zeros(10, int), np.array([0] * 8 + [0, 1])
    assert class_shares(own(("a", "b")), all_first, labels) == pytest.approx(
        {"balanced_acc": 0.5, "macro_f1": (16 / 18) / 2}
    )
    # Found: 8 of 8 and 1 of 2; F1 of the classes: 16 / 17 and 2 / 3.
    assert class_shares(own(("a", "b")), half, labels) == pytest.approx(
        {"balanced_acc": 0.75, "macro_f1": (16 / 17 + 2 / 3) / 2}
    )
    assert class_shares(own(("a", "b")), all_first[:4], np.array([0, 0, 0, 1])) == {}  # 75 %
    assert class_shares(own(()), np.zeros(4), np.zeros(4)) == {}


@pytest.mark.parametrize(
    ("predictions", "labels"), [([2.5, 2.5], [0.0, 5.0]), ([0.0, 5.0], [1.0, 1.0]), ([1.0], [2.0])]
)
def test_constant_scores_give_zero_and_a_warning(
    predictions: list, labels: list, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        scores = compute_metrics(TASKS["sts-b"], np.array(predictions), np.array(labels))
    assert {name: scores[name] for name in ("pearson", "spearmanr", "corr")} == dict.fromkeys(
        ("pearson", "spearmanr", "corr"), 0.0
    )
    assert "the correlation is not defined" in caplog.text


def test_unusable_predictions() -> None:
    for task, predictions, labels, message in (
        ("rte", [0, 1], [0], r"\(2,\) predictions for \(1,\) labels"),
        ("rte", [], [], "at least one"),
        ("sts-b", [math.nan, 1.0], [1.0, 2.0], "NaN or infinity"),
        ("ax", [0], [0], "--task_name ax has no published labels"),
    ):
        with pytest.raises(ValueError, match=message):
            compute_metrics(TASKS[task], np.array(predictions), np.array(labels))


def test_predictions_from_logits() -> None:
    logits = np.array([[0.1, 0.9, 0.0], [2.0, 2.0, 1.0]], np.float32)
    assert predictions_from_logits(TASKS["mnli"], logits).tolist() == [1, 0]
    scores = predictions_from_logits(TASKS["sts-b"], np.array([[1.5], [-2.0]]))
    assert scores.tolist() == [1.5, -2.0]
    with pytest.raises(ValueError, match=r"logits \(2, 3\) where task rte needs \(N, 2\)"):
        predictions_from_logits(TASKS["rte"], logits)


def test_entropy_by_hand_and_saturated() -> None:
    assert prediction_entropy(np.zeros((4, 3), np.float32)) == pytest.approx(math.log(3))
    certain = np.array([[1e4, -1e4], [-3e38, 3e38]], np.float32)
    assert prediction_entropy(certain) == 0.0
    # One row undecided between two classes, one certain.
    assert prediction_entropy(np.array([[5.0, 5.0], [900.0, 0.0]])) == pytest.approx(math.log(2) / 2)
    assert prediction_entropy(np.zeros((4, 1))) is None


@pytest.mark.parametrize(
    ("predictions", "num_labels", "expected"),
    [([2, 2, 2], 3, 2), ([0, 0], 2, 0), ([0, 1], 2, None), ([1], 2, None), ([], 2, None), ([1.0, 1.0], 1, None)],
)
def test_collapse(predictions: list, num_labels: int, expected: int | None) -> None:
    assert collapsed_to_one_class(np.array(predictions), num_labels) == expected
