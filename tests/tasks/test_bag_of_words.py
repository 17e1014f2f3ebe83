"""The bag of words learns what single words tell, and no more."""

from __future__ import annotations

import numpy as np
import pytest

from emmental.tasks import Split, resolve_task
from emmental.tasks.bag_of_words import MOST_CHARACTERS, MOST_ROWS, bag_of_words, rows_within_limits


def split(texts_a, labels, texts_b=None):
    return Split(list(texts_a), texts_b, list(labels), [str(row) for row in range(len(texts_a))])


def test_words_that_decide_are_learnt():
    train = split(["a good film", "a bad film", "good", "bad"] * 10, [1, 0, 1, 0] * 10)
    floor = bag_of_words(resolve_task("sst-2"), train, split(["good fun", "bad fun", "so good"], [1, 0, 0]))
    assert floor.predictions.tolist() == [1, 0, 1]
    assert floor.metrics == {"acc": pytest.approx(2 / 3)}
    assert floor.rows == 40


def test_a_pair_is_judged_by_what_it_shares():
    same, other = ("the cat sat", "the cat sat"), ("the cat sat", "a dog ran")
    pairs = [same, other] * 20
    train = split([a for a, _ in pairs], [1, 0] * 20, [b for _, b in pairs])
    dev = split(["dogs bark", "dogs bark"], [1, 0], ["dogs bark", "birds sing"])
    floor = bag_of_words(resolve_task("mrpc"), train, dev)
    assert floor.predictions.tolist() == [1, 0]


def test_scores_are_predicted_inside_their_range():
    texts = ["same words here", "nothing alike", "same thing", "quite other"] * 10
    train = split(texts, [5.0, 0.0, 5.0, 0.0] * 10, texts)
    floor = bag_of_words(resolve_task("sts-b"), train, split(texts[:4], [5.0, 0.0, 5.0, 0.0], texts[:4]))
    assert floor.predictions.min() >= 0
    assert floor.predictions.max() <= 5
    assert floor.metrics["pearson"] > 0.9


def test_one_class_in_training_is_predicted_always():
    floor = bag_of_words(resolve_task("sst-2"), split(["a", "b"], [1, 1]), split(["a", "c"], [1, 0]))
    assert floor.metrics == {"acc": 0.5}


def test_twice_the_same():
    train = split([f"word{n % 7} word{n % 3}" for n in range(100)], [n % 2 for n in range(100)])
    dev = split([f"word{n % 5}" for n in range(30)], [n % 2 for n in range(30)])
    first, second = (bag_of_words(resolve_task("sst-2"), train, dev) for _ in range(2))
    assert np.array_equal(first.predictions, second.predictions)


def test_no_more_rows_and_characters_than_the_limits():
    assert len(rows_within_limits(split(["ab"] * (MOST_ROWS + 5), [0] * (MOST_ROWS + 5)))) == MOST_ROWS
    assert len(rows_within_limits(split(["ab"] * MOST_ROWS, [0] * MOST_ROWS), fits=40)) == 10_000
    assert len(rows_within_limits(split(["ab"] * MOST_ROWS, [0] * MOST_ROWS), fits=1000)) == 2_000
    long = split(["x" * 10_000] * 400, [0] * 400)
    assert len(rows_within_limits(long)) == MOST_CHARACTERS // 10_000


def test_without_words_the_largest_class_is_predicted():
    floor = bag_of_words(resolve_task("sst-2"), split(["", " ", ""], [1, 0, 1]), split(["a", ""], [1, 0]))
    assert floor.predictions.tolist() == [1, 1]
