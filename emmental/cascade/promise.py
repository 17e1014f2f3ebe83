"""Thresholds with a promise: at most a share `changed` of all answers differs from the last stage's.

Learn then test (Angelopoulos, Bates, Candès, Jordan, Lei 2021, arXiv 2110.01052). A fifth of the calibration rows
gives the temperatures and a path of thresholds, from safe to cheap. Along this path, on the other rows, each step is
tested:
"it changes more than `changed`" is rejected if k changed answers of n, or fewer, had a probability of at most `delta`
under a binomial distribution with this share. The first step that is not rejected ends the path (fixed-sequence
testing). Then the probability, over the calibration rows, that any step before it breaks the promise is at most
`delta`, so the fastest of them can be taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isinf

import numpy as np

from emmental.cascade.answers import answers_of, confidence_of, differ, fit_temperature
from emmental.errors import UserError

DELTA = 0.05
EPSILONS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05)
"""Shares of changed answers in the table of a cascade."""
_DESIGN = 5
"""One row in this many finds temperatures and path, the others test it."""
_PRICES, _SWEEPS, _MOST_DESIGN, _MOST_TOGETHER = 350, 3, 2000, 3
"""Prices that are tried, sweeps for each choice of stages, rows that find the path, most stages of a choice."""
_LEFT_OUT = float("inf")
"""The threshold of a stage that is not asked."""


def tail(count: int, rows: int, share: float) -> float:
    """Probability of at most `count` changed answers among `rows` if each changes with probability `share`."""
    from scipy.stats import binom

    return float(binom.cdf(count, rows, share))


def upper_bound(count: int, rows: int, delta: float = DELTA) -> float:
    """The largest share that `count` changed answers among `rows` do not reject (Clopper and Pearson 1934)."""
    from scipy.stats import beta

    return 1.0 if count >= rows else float(beta.ppf(1 - delta, count + 1, rows - count))


def lower_bound(count: int, rows: int, delta: float = DELTA) -> float:
    """The smallest share under which `count` changed answers among `rows` are not too many."""
    from scipy.stats import beta

    return 0.0 if count <= 0 else float(beta.ppf(delta, count, rows - count + 1))


def design_rows(rows: int) -> int:
    """How many of the calibration rows find the path."""
    return rows // _DESIGN


def split_rows(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The calibration rows that find the path, and those that test it, by a random choice."""
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[: design_rows(rows)]), np.sort(order[design_rows(rows) :])


def check_promise(rows: int, changed: float, delta: float) -> None:
    """Refuse a promise that cannot be made.

    Raises:
        UserError: a share outside of (0, 1), or too few rows.
    """
    for name, value in (("changed", changed), ("delta", delta)):
        if not 0 < value < 1:
            raise UserError(f"--{name} accepts a share between 0 and 1, not {value:g}")
    if rows < (needed := rows_needed(changed, delta)):
        raise UserError(
            f"--changed {changed:g} needs at least {needed} texts, got {rows} (delta {delta:g}); more are better, or "
            "promise less with a larger share"
        )


def rows_needed(changed: float, delta: float = DELTA) -> int:
    """The fewest calibration rows with which a share of changed answers can be promised: if none changes."""
    tests = int(np.ceil(np.log(delta) / np.log1p(-changed)))
    rows = tests
    while rows - design_rows(rows) < tests:
        rows += 1
    return rows


@dataclass(frozen=True)
class Evidence:
    """What the stages but the last would do on rows. S stages (the last is not counted), N rows.

    Attributes:
        confidence: (S, N) how sure each is.
        changed: (S, N) bool, whether its answer differs from the last stage's.
        milliseconds: (S + 1,) mean time of each stage for one text, the last one too.
    """

    confidence: np.ndarray
    changed: np.ndarray
    milliseconds: np.ndarray

    @property
    def rows(self) -> int:
        return self.confidence.shape[1]

    def some(self, rows: np.ndarray) -> Evidence:
        """The evidence of some rows."""
        return Evidence(self.confidence[:, rows], self.changed[:, rows], self.milliseconds)


def evidence_of(
    logits: Sequence[np.ndarray], temperatures: Sequence[float], milliseconds: Sequence[float], several: bool
) -> Evidence:
    """The evidence of logits, see `calibrate`."""
    early, final = logits[:-1], answers_of(logits[-1], several)
    shape = (len(early), len(final))
    sure = [confidence_of(one, t, several) for one, t in zip(early, temperatures, strict=True)]
    changed = [differ(answers_of(one, several), final) for one in early]
    return Evidence(np.reshape(sure, shape), np.reshape(np.array(changed, bool), shape), np.asarray(milliseconds))


def stage_of(thresholds: Sequence[float], confidence: np.ndarray) -> np.ndarray:
    """(N,) number of the stage that answers each row: the first one that is sure enough, else the last."""
    sure = [row >= threshold for row, threshold in zip(confidence, thresholds, strict=True)]
    return np.vstack([*sure, np.ones((1, confidence.shape[1]), bool)]).argmax(axis=0)


@dataclass(frozen=True)
class TradeOff:
    """A cascade's thresholds, and what it does on rows that did not choose them.

    Attributes:
        promise: the share of changed answers that is promised.
        thresholds: (S,) of the stages but the last; infinite: the stage is left out.
        shares: (S + 1,) share of the rows that each stage answers.
        count, rows: changed answers, and rows that they were counted on.
        bound: the upper bound for the share of changed answers, at the `delta` of the promise.
        milliseconds: mean for one text, from the stages' means.
    """

    promise: float
    thresholds: tuple[float, ...]
    shares: tuple[float, ...]
    count: int
    rows: int
    bound: float
    milliseconds: float

    @property
    def changed(self) -> float:
        """The measured share of changed answers."""
        return self.count / self.rows


def mean_milliseconds(thresholds: Sequence[float], answered_by: np.ndarray, milliseconds: np.ndarray) -> float:
    """Mean time for one text. A text pays every stage that it meets, and stages that are left out cost nothing."""
    asked = [not isinf(threshold) for threshold in thresholds] + [True]
    meets = [float((answered_by >= stage).mean()) for stage in range(len(asked))]
    return float(sum(ms * share for ms, share, one in zip(milliseconds, meets, asked, strict=True) if one))


def outcome(thresholds: Sequence[float], evidence: Evidence, promise: float, delta: float) -> TradeOff:
    """What thresholds do on rows."""
    by = stage_of(thresholds, evidence.confidence)
    stages = len(thresholds)
    count = int(sum(evidence.changed[stage][by == stage].sum() for stage in range(stages)))
    bound = upper_bound(count, evidence.rows, delta) if (by < stages).any() else 0.0
    shares = tuple(float((by == stage).mean()) for stage in range(stages + 1))
    ms = mean_milliseconds(thresholds, by, evidence.milliseconds)
    return TradeOff(promise, tuple(map(float, thresholds)), shares, count, evidence.rows, bound, ms)


def threshold_path(evidence: Evidence) -> list[tuple[float, ...]]:
    """Thresholds from safe to cheap: for each price of a changed answer, those with the least mean cost.

    The cost of a text is its milliseconds plus price x probability that the answer changes. That probability is the
    stage's doubt (1 - confidence), so rare changes count before one is seen. Every choice of up to three
    stages is tried.
    """
    rows = evidence.confidence.shape[1]
    spread = np.linspace(0, rows - 1, min(rows, _MOST_DESIGN), dtype=int)  # a file may be sorted by class
    doubt = 1 - evidence.confidence[:, spread]
    ms = evidence.milliseconds
    stages = range(len(doubt))
    choices = [choice for size in range(1, _MOST_TOGETHER + 1) for choice in combinations(stages, size)]
    found = [(_LEFT_OUT,) * len(doubt)]
    for price in np.geomspace(1e5 * ms[-1], 1e-3 * ms[-1], _PRICES):
        best, least = found[0], float(ms[-1])
        for choice in choices:
            thresholds, cost = _cheapest(doubt, ms, choice, price)
            if cost < least:
                best, least = thresholds, cost
        if best != found[-1]:
            found.append(best)
    return found


def _cheapest(
    doubt: np.ndarray, ms: np.ndarray, choice: Sequence[int], price: float
) -> tuple[tuple[float, ...], float]:
    """The thresholds of these stages with the least mean cost, from the last to the first, and that cost.

    Each sweep sees only the rows that reach a stage under the thresholds of the sweep before.
    """
    largest = dict.fromkeys(choice, 0.0)  # doubt with which each still answers
    for _ in range(_SWEEPS):
        before = dict(largest)
        going_on = np.full(doubt.shape[1], ms[-1])
        for number, stage in reversed(list(enumerate(choice))):
            earlier = [doubt[one] > before[one] for one in choice[:number]]
            reached = np.logical_and.reduce(earlier) if earlier else np.ones(doubt.shape[1], bool)
            rows = np.flatnonzero(reached) if reached.any() else np.arange(doubt.shape[1])
            largest[stage] = _best_cut(doubt[stage][rows], price * doubt[stage][rows], going_on[rows])
            going_on = ms[stage] + np.where(doubt[stage] <= largest[stage], price * doubt[stage], going_on)
    thresholds = [_LEFT_OUT] * len(doubt)
    for stage in choice:
        thresholds[stage] = 1 - largest[stage]
    return tuple(thresholds), float(going_on.mean())


def _best_cut(doubt: np.ndarray, answering: np.ndarray, going_on: np.ndarray) -> float:
    """The doubt up to which answering is cheaper in sum: between two rows, in the middle of their logarithms."""
    order = np.argsort(doubt, kind="stable")
    gains = np.concatenate([[0.0], np.cumsum((answering - going_on)[order])])
    place = int(np.argmin(gains))
    ordered = np.maximum(doubt[order], 1e-12)
    if place == 0:
        return float(ordered[0] / 2)
    if place == len(ordered):
        return float(ordered[-1])
    return float(np.sqrt(ordered[place - 1] * ordered[place]))


def fastest_on(steps: Sequence[Sequence[float]], test: Evidence, changed: float, delta: float) -> TradeOff:
    """The fastest step of a path before the first that the test rows do not show to keep the promise.

    The first step, the last stage alone, changes nothing and needs no test.
    """
    passed = [outcome(steps[0], test, changed, delta)]
    for step in steps[1:]:
        one = outcome(step, test, changed, delta)
        if tail(one.count, one.rows, changed) > delta and any(share > 0 for share in one.shares[:-1]):
            break
        passed.append(one)
    return min(passed, key=lambda one: one.milliseconds)


@dataclass(frozen=True)
class Calibrated:
    """The outcome of a calibration.

    Attributes:
        temperatures: (S,) of the stages but the last.
        chosen: the thresholds for the share asked for.
        table: a row for each of `EPSILONS`, and for the share asked for.
        design, test: which rows found the path, and which tested it. The measured numbers are of the latter.
    """

    temperatures: tuple[float, ...]
    chosen: TradeOff
    table: tuple[TradeOff, ...]
    design: np.ndarray
    test: np.ndarray


def calibrate(
    logits: Sequence[np.ndarray],
    milliseconds: Sequence[float],
    changed: float = 0.01,
    delta: float = DELTA,
    several: bool = False,
    seed: int = 0,
    epsilons: Sequence[float] = EPSILONS,
) -> Calibrated:
    """Temperatures and thresholds of a cascade, from what its stages answer on rows that none was trained on.

    Args:
        logits: of each stage (N, C), the last stage's at the end; classes in the same order.
        milliseconds: mean time of each stage for one text.
        changed: share of the answers that may differ from the last stage's.
        delta: probability that the promise may fail.
        several: whether several labels are given at once.
        seed: of the choice of rows that find the path.
        epsilons: further shares for the table; those that the rows cannot promise are left out.

    Raises:
        UserError: a share outside of (0, 1), logits that are not finite, or too few rows.
    """
    rows = len(logits[-1])
    check_promise(rows, changed, delta)
    if any(one.shape != logits[-1].shape for one in logits) or not all(np.isfinite(one).all() for one in logits):
        raise UserError("every stage must give a finite number for each text and class")
    design, test = split_rows(rows, seed)
    final = answers_of(logits[-1], several)
    temperatures = tuple(fit_temperature(one[design], final[design]) for one in logits[:-1])
    evidence = evidence_of(logits, temperatures, milliseconds, several)
    steps, on_test = threshold_path(evidence.some(design)), evidence.some(test)
    promised = sorted({*(one for one in epsilons if rows >= rows_needed(one, delta)), changed})
    table = tuple(fastest_on(steps, on_test, one, delta) for one in promised)
    return Calibrated(temperatures, table[promised.index(changed)], table, design, test)
