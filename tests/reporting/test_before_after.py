"""The table at the end of a run, and when a model is better than a bag of words."""

from __future__ import annotations

import numpy as np
import pytest

from emmental.reporting import before_after
from emmental.reporting.before_after import Candidate, before_and_after
from emmental.tasks.bag_of_words import Floor


def test_a_small_model_is_compared_with_its_original_too() -> None:
    """250 of 1,000 weights were left before, and now 100 are."""
    rows = [Candidate("dense", 0.9, 250_000, original=1_000_000), Candidate("40.0% kept", 0.8, 100_000)]
    _, first, last = before_and_after(rows, "acc")
    assert " 0.25 M (25.0 % of the original)  " in first
    assert " 0.10 M (40.0 %, 10.0 % of the original)  " in last
    whole = [Candidate("dense", 0.9, 1_000_000), Candidate("25.0% kept", 0.8, 250_000, original=1_000_000)]
    assert " 0.25 M (25.0 %)  " in before_and_after(whole, "acc")[2]


@pytest.mark.parametrize(
    ("metric", "model", "words", "rows", "no_better"),
    [
        ("acc", 0.85, 0.8, 400, True),  # standard error of the difference: 2.7 points
        ("acc", 0.86, 0.8, 400, False),
        ("mnli/acc", 0.85, 0.8, 400, True),
        ("mnli/acc", 0.86, 0.8, 400, False),
        ("corr", 0.85, 0.8, 203, True),  # z: 1.256 and 1.099; two standard errors: 0.2
        ("corr", 0.87, 0.8, 203, False),  # z: 1.333
        ("mcc", 0.3, 0.4, 1000, True),
        ("mcc", 0.4, 0.4, 3, True),
    ],
)
def test_a_model_must_beat_the_bag_of_words_by_more_than_the_noise(metric, model, words, rows, no_better):
    floor = Floor({metric: words}, np.zeros(rows), 100, 0.1)
    assert before_after.no_better_than_words({metric: model}, floor, metric) is no_better


def test_accuracies_are_compared_if_there_are_any():
    floor = Floor({"acc": 0.7, "f1": 0.8, "acc_and_f1": 0.75}, np.zeros(100), 100, 0.1)
    results = {"acc": 0.9, "f1": 0.8, "acc_and_f1": 0.85}
    assert not before_after.no_better_than_words(results, floor, "acc_and_f1")
