"""Whether a pruned model beats each peer: as fast and better, or as good and much faster, in the same engine."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

OURS = ("ours-", "cut-")
MUCH_FASTER = 1.5
_ERRORS = 2.0
"""Better is by more than this number of standard errors; as good is not worse by more than one."""


def difference(ours: np.ndarray, peer: np.ndarray) -> tuple[float, float]:
    """Difference of two accuracies on the same rows, and its standard error; (N,) bool, which rows are right."""
    each = ours.astype(float) - peer.astype(float)
    return float(each.mean()), float(each.std() / math.sqrt(len(each)))


def beats(gain: float, error: float, times: float) -> bool:
    """As fast and better by more than the noise, or as good and `MUCH_FASTER`; `times` as fast as the peer."""
    better, as_good = gain > _ERRORS * error, gain >= -error
    return (times >= 1 and better) or (times >= MUCH_FASTER and as_good)


def verdicts(rows: Mapping[str, Mapping], right: Mapping[tuple[str, str], np.ndarray], shape: str) -> list[str]:
    """A line for each peer and engine: our fastest model that beats it, or that there is none.

    Args:
        rows: model -> `milliseconds`, by "engine, batch x length"; none for a peer that was not timed, for which
            the most accurate of ours is named instead.
        right: (model, engine) -> (N,) bool, the rows that it answers right.
        shape: batch x length.
    """
    lines = []
    for (peer, engine), answers in right.items():
        if peer.startswith(OURS):
            continue
        own = rows[peer]["milliseconds"].get(f"{engine}, {shape}")
        found = []
        for (name, same), answered in right.items():
            if name.startswith(OURS) and same == engine:
                gain, error = difference(answered, answers)
                milliseconds = rows[name]["milliseconds"][f"{engine}, {shape}"]
                times = math.inf if own is None else own / milliseconds
                if gain > _ERRORS * error if own is None else beats(gain, error, times):
                    found.append((milliseconds, name, gain, error, times))
        lines.append(f"{peer}, {engine}: {_said(min(found)) if found else 'none'}")
    return lines


def _said(best: tuple[float, str, float, float, float]) -> str:
    milliseconds, name, gain, error, times = best
    speed = f"{milliseconds:.1f} ms" if math.isinf(times) else f"{times:.1f} times as fast"
    return f"{name}, {100 * gain:+.1f} points (standard error {100 * error:.1f}), {speed}"
