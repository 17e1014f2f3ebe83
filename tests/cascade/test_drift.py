"""The check of new texts: shares of the stages, and answers that change more than promised."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from scipy.stats import chi2
from tiny_cascade import NAMES, rows

from emmental.cascade import load
from emmental.cascade.drift import _p_value, check
from emmental.cascade.promise import lower_bound, upper_bound
from emmental.cascade.serving import Cascade, ReadyStage
from emmental.errors import UserError


class Known:
    """A stage whose logits are the number in each text, times this factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def logits(self, texts, batch_size=32):
        values = np.array([float(text) for text in texts]) * self.factor
        return np.stack([-values, values], axis=1)


def known(changes: bool = False, answered: tuple[int, int] = (90, 10)) -> Cascade:
    """Texts with a number beyond 1 are answered early, by the class that the last stage gives or by the other."""
    steps = [ReadyStage("early", Known(-1 if changes else 1), 0.88, 1.0), ReadyStage("last", Known(1), 0.0, 1.0)]
    record = {
        "stages": [{"answered": count} for count in answered],
        "promise": {"changed": 0.1, "delta": 0.05},
    }
    return Cascade(NAMES, steps, False, False, record)


def test_the_same_kind_of_texts():
    found = check(known(), ["3"] * 90 + ["0.1"] * 10)
    assert (found.before, found.now) == ((90, 10), (90, 10))
    assert found.p_value == 1
    assert (found.count, found.rows) == (0, 100)
    assert found.high == pytest.approx(upper_bound(0, 100, 0.05))
    assert not found.shares_differ
    assert not found.broken
    assert "the promise holds: at most 2.95 % change" in found.lines(["early", "last"])[1]


def test_texts_that_fall_through():
    found = check(known(), ["3"] * 50 + ["0.1"] * 50)
    expected = np.array([[70, 30], [70, 30]])
    statistic = ((np.abs(np.array([[90, 10], [50, 50]]) - expected) - 0.5) ** 2 / expected).sum()  # Yates' correction
    assert found.p_value == pytest.approx(chi2.sf(statistic, 1))
    assert found.shares_differ
    assert found.reaches_further
    assert "more of them reach the late stages" in found.lines(["early", "last"])[0]


def test_few_texts_are_judged_by_what_chance_makes_of_them():
    """Two texts reach a stage that 3 of 100 did. Both of two draws are such rows: 5 * 4 / (102 * 101)."""
    assert _p_value((97, 3), (0, 2)) == pytest.approx(20 / (102 * 101), abs=0.0015)
    assert _p_value((97, 3), (2, 0)) == 1
    assert _p_value((480, 3, 0), (1, 0, 1)) == pytest.approx(2 / 485, abs=0.003)


def test_answers_that_change():
    found = check(known(changes=True), ["3"] * 30 + ["0.1"] * 70)
    assert (found.count, found.rows) == (30, 100)
    assert found.low == pytest.approx(lower_bound(30, 100, 0.05))
    assert found.broken
    assert "the promise does not hold" in found.lines(["early", "last"])[1]


def test_a_sample_and_what_it_cannot_tell():
    found = check(known(), ["3"] * 100, sample=10)
    assert found.rows == 10
    assert found.high > 0.1
    assert "no sign that the promise fails" in found.lines(["early", "last"])[1]
    with pytest.raises(UserError, match="at least one text"):
        check(known(), [])


def test_stages_that_never_answer_do_not_count():
    assert _p_value((50, 0, 50), (50, 0, 50)) == 1
    assert _p_value((100, 0), (80, 0)) == 1


def test_a_real_cascade(served):
    cascade = load(served, threads=1)
    alike = check(cascade, [text for text, _ in rows(300, seed=9)])
    assert not alike.shares_differ
    assert not alike.broken
    neutral = [" ".join(tiny.WORDS[24 + (row + step) % 12] for step in range(5)) for row in range(200)]
    strange = check(cascade, neutral)
    assert strange.shares_differ
    assert strange.reaches_further
