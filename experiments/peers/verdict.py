"""Whether a pruned model beats each peer: as fast and better, or as good and much faster, in the same engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

OURS = ("ours-", "cut-")
MUCH_FASTER = 1.5
_ERRORS = 2.0
"""Better: by more than this number of standard errors. As good: worse by at most one standard error."""


def difference(ours: np.ndarray, peer: np.ndarray) -> tuple[float, float]:
    """Difference of two accuracies on the same rows, and its standard error; (N,) bool, which rows are right."""
    each = ours.astype(float) - peer.astype(float)
    return float(each.mean()), float(each.std() / math.sqrt(len(each)))


def beats(gain: float, error: float, times: float) -> bool:
    """As fast and significantly better, or as good and `MUCH_FASTER`; `times`: how many times as fast."""
    better, as_good = gain > _ERRORS * error, gain >= -error
    return (times >= 1 and better) or (times >= MUCH_FASTER and as_good)


def verdicts(rows: Mapping[str, Mapping], right: Mapping[tuple[str, str], np.ndarray], shape: str) -> list[str]:
    """A line for each peer and engine: our fastest model that beats it there, or that there is none.

    The last line of each peer compares its fastest engine with our models in any engine.

    Args:
        rows: model -> `milliseconds`, by "engine, batch x length"; empty for a peer that was not timed. A better
            model beats such a peer.
        right: (model, engine) -> (N,) bool, the rows that it answers right.
        shape: batch x length.
    """
    engines = list(dict.fromkeys(engine for _, engine in right))
    lines = []
    for peer in dict.fromkeys(name for name, _ in right if not name.startswith(OURS)):
        times = {engine: _time(rows, peer, engine, shape) for engine in engines if (peer, engine) in right}
        best = min(times, key=times.__getitem__)
        for engine in times:
            lines.append(f"{peer}, {engine}: {_fastest(rows, right, shape, (peer, engine), [engine])}")
        lines.append(f"{peer}, best engine ({best}): {_fastest(rows, right, shape, (peer, best), engines)}")
    return lines


def _time(rows: Mapping[str, Mapping], name: str, engine: str, shape: str) -> float:
    return rows[name]["milliseconds"].get(f"{engine}, {shape}", math.inf)


def _fastest(
    rows: Mapping[str, Mapping],
    right: Mapping[tuple[str, str], np.ndarray],
    shape: str,
    peer: tuple[str, str],
    engines: Sequence[str],
) -> str:
    """Our fastest model in one of the engines that beats the peer, in words."""
    own, found = _time(rows, *peer, shape), []
    for (name, engine), answered in right.items():
        if name.startswith(OURS) and engine in engines:
            gain, error = difference(answered, right[peer])
            milliseconds = _time(rows, name, engine, shape)
            timed = not math.isinf(own)
            if beats(gain, error, own / milliseconds) if timed else gain > _ERRORS * error:
                speed = f"{own / milliseconds:.1f} times as fast" if timed else f"{milliseconds:.1f} ms"
                points = f"{100 * gain:+.1f} points (standard error {100 * error:.1f})"
                found.append((milliseconds, f"{name} in {engine}, {points}, {speed}"))
    return min(found)[1] if found else "none"
