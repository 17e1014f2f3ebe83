"""Measures a calibrated cascade beside its models: accuracy, changed answers, milliseconds. Rows ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isinf
from typing import Any

import numpy as np

from emmental.cascade.answers import answers_of, differ
from emmental.cascade.models import WrittenStage
from emmental.cascade.promise import Calibrated, Evidence, TradeOff, evidence_of, mean_milliseconds, stage_of
from emmental.cascade.timing import MS_ALONE


@dataclass(frozen=True)
class Labelled:
    """Rows with known answers.

    Attributes:
        logits: of each stage (N, C).
        right: (N,) class ids, or (N, L) bool for several labels at once.
    """

    logits: Sequence[np.ndarray]
    right: np.ndarray


def measure(
    written: Sequence[WrittenStage],
    calibrated: Calibrated,
    times: Mapping[str, Sequence[float]],
    several: bool,
    judged: Labelled | None = None,
) -> dict[str, Any]:
    """Numbers of each model alone, of the chosen thresholds, and of other promises.

    Changed answers and milliseconds are those of the rows that tested the thresholds, accuracies those of `judged`.

    Args:
        written: the stages.
        calibrated: see `calibrate`, of the same stages.
        times: `MS_ALONE` and `MS_BATCHED` -> mean milliseconds of each stage.
        several: whether several labels are given at once.
        judged: rows with labels; None: no accuracies.

    Returns:
        `models`, a row for each; `measured`, that of the promise; `table`, a row for each promise; `judged_on`, the
        number of rows that accuracies are counted on.
    """
    names = [one.settings["name"] for one in written]
    tested = [one.logits[calibrated.test] for one in written]
    evidence = evidence_of(tested, calibrated.temperatures, times[MS_ALONE], several)
    answers = [answers_of(one, several) for one in tested]
    models = [
        {
            "name": name,
            "engine": one.settings["engine"],
            "changed": float(differ(answers[number], answers[-1]).mean()),
            **{key: values[number] for key, values in times.items()},
            **_accuracy(None if judged is None else answers_of(judged.logits[number], several), judged),
        }
        for number, (name, one) in enumerate(zip(names, written, strict=True))
    ]
    labelled = (
        None if judged is None else evidence_of(judged.logits, calibrated.temperatures, times[MS_ALONE], several)
    )

    def row(one: TradeOff) -> dict[str, Any]:
        by = None if labelled is None else stage_of(one.thresholds, labelled.confidence)
        given = None if judged is None or by is None else _answers_by(by, judged.logits, several)
        return {**_row(one, names, evidence, times), **_accuracy(given, judged)}

    table = [row(one) for one in calibrated.table]
    counted = {} if judged is None else {"judged_on": len(judged.right)}
    return {"measured": row(calibrated.chosen), "table": table, "models": models, **counted}


def _row(
    one: TradeOff, names: Sequence[str], evidence: Evidence, times: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    by = stage_of(one.thresholds, evidence.confidence)
    thresholds = [None if isinf(threshold) else threshold for threshold in one.thresholds]
    return {
        "promise": one.promise,
        "changed": one.changed,
        "count": one.count,
        "rows": one.rows,
        "bound": one.bound,
        **{key: mean_milliseconds(one.thresholds, by, np.array(values)) for key, values in times.items()},
        "thresholds": dict(zip(names, thresholds, strict=False)),
        "shares": dict(zip(names, one.shares, strict=True)),
    }


def _answers_by(by: np.ndarray, logits: Sequence[np.ndarray], several: bool) -> np.ndarray:
    """The answer of each row, from the stage that answers it: (N,) class ids, or (N, L) bool."""
    return np.stack([answers_of(one, several) for one in logits])[by, np.arange(len(by))]


def _accuracy(given: np.ndarray | None, judged: Labelled | None) -> dict[str, float]:
    if given is None or judged is None:
        return {}
    return {"accuracy": 1 - float(differ(given, judged.right).mean())}
