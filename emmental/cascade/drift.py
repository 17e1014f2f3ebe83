"""Checks a cascade on new texts: do more of them reach the late stages, and do more answers change than promised?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emmental.cascade.answers import answers_of
from emmental.cascade.promise import lower_bound, upper_bound
from emmental.cascade.serving import Cascade
from emmental.cascade.words import Text
from emmental.errors import UserError

SAMPLE = 1000
"""Most texts that the last stage answers too."""
UNLIKELY = 0.01
"""Shares of stages differ if chance alone would make them differ so much with a smaller probability."""
_FEWEST_EXPECTED, _RANDOM_TABLES = 5, 9999


@dataclass(frozen=True)
class Drift:
    """New texts compared with the calibration.

    Attributes:
        before, now: texts that each stage answered, on the calibration rows and on the new texts.
        p_value: probability that chance alone makes the shares differ so much.
        reaches_further: whether the new texts go on to later stages, on average.
        count, rows: answers that differ from the last stage's, and texts that the last stage was asked for.
        low, high: bounds for the share of such answers, each at the `delta` of the promise.
        promise: the share that was promised.
    """

    before: tuple[int, ...]
    now: tuple[int, ...]
    p_value: float
    reaches_further: bool
    count: int
    rows: int
    low: float
    high: float
    promise: float

    @property
    def shares_differ(self) -> bool:
        """Whether other stages answer than on the calibration rows."""
        return self.p_value < UNLIKELY

    @property
    def broken(self) -> bool:
        """Whether more answers change than promised, beyond chance."""
        return self.low > self.promise

    def lines(self, names: Sequence[str]) -> list[str]:
        """The result for people."""
        shares = [
            " / ".join(f"{100 * one / max(sum(each), 1):.1f}" for one in each) for each in (self.before, self.now)
        ]
        more = "more of them reach the late stages" if self.reaches_further else "fewer of them reach the late stages"
        said = f"these texts are of another kind: {more}" if self.shares_differ else "no more different than by chance"
        measured = (
            f"answers that differ from {names[-1]}'s: {self.count} of {self.rows} "
            f"({100 * self.count / self.rows:.2f} %); promised: at most {100 * self.promise:g} %"
        )
        if self.broken:
            verdict = f"the promise does not hold: at least {100 * self.low:.2f} % change; calibrate again"
        elif self.high <= self.promise:
            verdict = f"the promise holds: at most {100 * self.high:.2f} % change"
        else:
            verdict = f"no sign that the promise fails (at most {100 * self.high:.2f} % change); more texts tell more"
        return [
            f"answered by {' / '.join(names)}: {shares[0]} % when calibrated, {shares[1]} % now; {said} "
            f"(p = {self.p_value:.2g})",
            f"{measured}; {verdict}",
        ]


def check(cascade: Cascade, texts: Sequence[Text], sample: int = SAMPLE, batch_size: int = 32, seed: int = 0) -> Drift:
    """Compare new texts with the calibration rows.

    The shares of the stages by a chi-squared test of homogeneity; the changed answers on a random sample, by the
    bounds of Clopper and Pearson.

    Args:
        texts: new ones, as the cascade takes them.
        sample: most texts that the last stage answers too.
        seed: of the sample.

    Raises:
        UserError: no text.
    """
    given = cascade.read(texts)
    if not given:
        raise UserError("--check needs at least one text")
    answers = cascade.classify(given, batch_size)
    names = [step.name for step in cascade.steps]
    counted = Counter(one["stage"] for one in answers)
    now = tuple(counted[name] for name in names)
    before = tuple(int(one["answered"]) for one in cascade.record["stages"])
    chosen = np.sort(np.random.default_rng(seed).permutation(len(given))[:sample])
    early = [row for row in chosen if answers[row]["stage"] != names[-1]]
    count = 0
    if early:
        logits = cascade.steps[-1].stage.logits([given[row] for row in early], batch_size)
        wanted = answers_of(logits, cascade.several)
        count = sum(answers[row]["label"] != cascade.label_of(one) for row, one in zip(early, wanted, strict=True))
    promise = cascade.record["promise"]
    delta = promise["delta"]
    return Drift(
        before,
        now,
        _p_value(before, now),
        _mean_stage(now) > _mean_stage(before),
        count,
        len(chosen),
        lower_bound(count, len(chosen), delta),
        upper_bound(count, len(chosen), delta) if len(names) > 1 else 0.0,
        promise["changed"],
    )


def _mean_stage(counts: Sequence[int]) -> float:
    return float(np.average(np.arange(len(counts)), weights=counts)) if sum(counts) else 0.0


def _p_value(before: Sequence[int], now: Sequence[int]) -> float:
    """Of the chi-squared test; if a count of less than five is expected, by random tables with the same sums."""
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import expected_freq

    counts = np.array([before, now])
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.shape[1] < 2 or 0 in counts.sum(axis=1):
        return 1.0
    expected = expected_freq(counts)
    if expected.min() >= _FEWEST_EXPECTED:
        return float(chi2_contingency(counts).pvalue)
    draw = np.random.default_rng(0)
    drawn = draw.multivariate_hypergeometric(counts.sum(axis=0), counts[1].sum(), size=_RANDOM_TABLES)
    # Both rows of a table differ from the expected counts by as much.
    distances = ((drawn - expected[1]) ** 2 * (1 / expected).sum(axis=0)).sum(axis=1)
    found = ((counts[1] - expected[1]) ** 2 * (1 / expected).sum(axis=0)).sum()
    return float((1 + (distances >= found * (1 - 1e-9)).sum()) / (1 + _RANDOM_TABLES))
