"""Thresholds that keep a promise: numbers by hand, and how often the promise fails where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from emmental.cascade.answers import answers_of, confidence_of, differ, fit_temperature
from emmental.cascade.promise import (
    Evidence,
    calibrate,
    evidence_of,
    fastest_on,
    lower_bound,
    outcome,
    rows_needed,
    stage_of,
    tail,
    threshold_path,
    upper_bound,
)
from emmental.errors import UserError

NEVER = math.inf


def test_bounds_by_hand():
    assert tail(0, 10, 0.1) == pytest.approx(0.9**10)
    assert tail(1, 10, 0.1) == pytest.approx(0.9**10 + 10 * 0.1 * 0.9**9)
    assert upper_bound(0, 10, 0.05) == pytest.approx(1 - 0.05**0.1)  # (1 - p)^10 = 0.05
    assert upper_bound(10, 10) == 1
    assert lower_bound(10, 10, 0.05) == pytest.approx(0.05**0.1)
    assert lower_bound(0, 10) == 0
    for count in (1, 3):
        assert tail(count, 50, upper_bound(count, 50, 0.05)) == pytest.approx(0.05)


def test_rows_that_a_promise_takes():
    """0.99^299 is below 0.05, 0.99^298 is not: 299 rows must test, which are four fifths of 373."""
    assert 0.99**299 <= 0.05 < 0.99**298
    assert rows_needed(0.01, 0.05) == 373
    assert 373 - 373 // 5 == 299


def test_the_first_sure_stage_answers():
    confidence = np.array([[0.9, 0.4, 0.7, 0.2], [0.6, 0.8, 0.9, 0.1]])
    assert stage_of((0.7, 0.8), confidence).tolist() == [0, 1, 0, 2]
    assert stage_of((NEVER, 0.6), confidence).tolist() == [1, 1, 1, 2]
    assert stage_of((), np.empty((0, 2))).tolist() == [0, 0]


def test_an_outcome_by_hand():
    confidence = np.array([[0.9, 0.4, 0.7, 0.2], [0.6, 0.8, 0.9, 0.1]])
    changed = np.array([[True, True, False, True], [True, False, True, True]])
    evidence = Evidence(confidence, changed, np.array([1.0, 4.0, 10.0]))
    one = outcome((0.7, 0.8), evidence, 0.5, 0.05)
    assert one.count == 1  # the first row; the others that would change are answered elsewhere
    assert one.shares == (0.5, 0.25, 0.25)
    assert one.milliseconds == pytest.approx(1 + 4 * 0.5 + 10 * 0.25)
    assert outcome((NEVER, 0.8), evidence, 0.5, 0.05).milliseconds == pytest.approx(4 + 10 * 0.5)
    alone = outcome((NEVER, NEVER), evidence, 0.5, 0.05)
    assert (alone.count, alone.bound, alone.milliseconds) == (0, 0, 10)


def test_the_path_goes_from_safe_to_cheap():
    """With one early stage, it answers as soon as a going on would cost more than its doubt."""
    doubt = np.linspace(0.001, 0.5, 200)
    evidence = Evidence((1 - doubt)[None], np.zeros((1, 200), bool), np.array([1.0, 10.0]))
    steps = threshold_path(evidence)
    assert steps[0] == (NEVER,)
    assert len(steps) > 30
    thresholds = [step[0] for step in steps[1:]]
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[-1] <= 0.5 + 1e-9  # at the lowest price all is answered


def test_a_stage_that_does_not_pay_is_left_out():
    """The second stage knows nothing that the first does not know, and costs more."""
    doubt = np.linspace(0.001, 0.9, 300)
    confidence = np.stack([1 - doubt, 1 - doubt])
    evidence = Evidence(confidence, np.zeros((2, 300), bool), np.array([1.0, 5.0, 10.0]))
    assert all(step[1] == NEVER for step in threshold_path(evidence))


def test_the_path_ends_with_the_cheapest_stage_alone():
    """However sure the second stage is: a promise that is loose enough needs none of it."""
    confidence = np.stack([np.linspace(0.2, 0.99, 200), np.full(200, 0.9999)])
    evidence = Evidence(confidence, np.zeros((2, 200), bool), np.array([1.0, 3.0, 10.0]))
    cheapest = outcome(threshold_path(evidence)[-1], evidence, 0.5, 0.05)
    assert cheapest.shares == (1, 0, 0)
    assert cheapest.milliseconds == 1


def test_fixed_sequence_testing_stops_at_the_first_step_that_fails():
    """Three steps; the second changes too much, and the third, which would pass, is not reached."""
    confidence = np.stack([np.linspace(0, 1, 400), np.linspace(0, 1, 400)])
    changed = np.array([np.arange(400) >= 300, np.zeros(400)], bool)
    evidence = Evidence(confidence, changed, np.array([1.0, 2.0, 10.0]))
    steps = [(NEVER, NEVER), (0.75, NEVER), (NEVER, 0.1)]
    assert fastest_on(steps, evidence, 0.01, 0.05).thresholds == steps[0]
    assert fastest_on([steps[0], steps[2], steps[1]], evidence, 0.01, 0.05).thresholds == steps[2]


def test_a_temperature_by_hand():
    """Margin 2 and 3 of 4 answers agree: the likelihood is largest where sigmoid(2 / T) = 3 / 4, nearly."""
    logits = np.tile([[0.0, 2.0]], (4000, 1))
    answers = np.tile([1, 1, 1, 0], 1000)
    assert fit_temperature(logits, answers) == pytest.approx(2 / math.log(3), rel=0.01)
    several = np.tile([[2.0]], (4000, 1))
    assert fit_temperature(several, answers[:, None] > 0) == pytest.approx(2 / math.log(3), rel=0.01)


def test_several_labels_are_as_sure_as_the_least_sure_one():
    logits = np.array([[3.0, -1.0], [-2.0, -4.0]])
    assert answers_of(logits, True).tolist() == [[True, False], [False, False]]
    assert confidence_of(logits, 1.0, True) == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))])
    other = np.array([[3.0, 1.0], [-2.0, -4.0]])
    assert differ(answers_of(logits, True), answers_of(other, True)).tolist() == [True, False]


def test_too_few_rows_say_how_many_it_takes():
    logits = [np.zeros((100, 2)), np.zeros((100, 2))]
    with pytest.raises(UserError, match=r"--changed 0.01 needs at least 373 texts, got 100"):
        calibrate(logits, [1.0, 2.0])


@pytest.mark.parametrize(("changed", "delta"), [(0, 0.05), (1, 0.05), (0.01, 0), (float("nan"), 0.05)])
def test_shares_are_checked(changed, delta):
    with pytest.raises(UserError, match="accepts a share between 0 and 1"):
        calibrate([np.zeros((9, 2))] * 2, [1.0, 2.0], changed, delta)


def test_nan_is_refused():
    broken = np.zeros((400, 2))
    broken[3, 0] = np.nan
    with pytest.raises(UserError, match="finite"):
        calibrate([broken, np.zeros((400, 2))], [1.0, 2.0])


def drawn(rows: int, draw: np.random.Generator, calibrated: bool) -> list[np.ndarray]:
    """Logits of two stages and the last one. What each stage changes is drawn from its doubt, or from more."""
    last = draw.choice([-1.0, 1.0], rows)
    logits = []
    hard = draw.beta(0.5, 2.0, rows)
    for skill in (2.0, 6.0):
        doubt = np.clip(0.5 * hard ** (skill / 2), 1e-6, 0.499)
        risk = doubt if calibrated else np.minimum(3 * doubt**0.8, 0.5)
        margin = np.log((1 - doubt) / doubt) * np.where(draw.random(rows) < risk, -1, 1) * last
        logits.append(np.stack([-margin / 2, margin / 2], axis=1))
    return [*logits, np.stack([-last, last], axis=1) * 5]


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_promise_fails_in_at_most_delta_of_the_splits(calibrated):
    """200 calibrations from a known distribution; each is judged on a million texts' worth of fresh ones.

    Of 200 with a probability of 0.1, 31 or more have a probability below 0.01.
    """
    draw = np.random.default_rng(1)
    changed, delta, ms = 0.05, 0.1, [0.3, 3.0, 10.0]
    population = drawn(50_000, draw, calibrated)
    failed, faster = 0, 0
    for split in range(200):
        found = calibrate(drawn(250, draw, calibrated), ms, changed, delta, seed=split, epsilons=())
        truth = outcome(
            found.chosen.thresholds, evidence_of(population, found.temperatures, ms, False), changed, delta
        )
        failed += truth.changed > changed
        faster += found.chosen.milliseconds < 0.7 * ms[-1]
        assert found.chosen.bound <= changed
    assert failed <= 30
    assert faster >= 150
