"""What a stage answers and how sure it is, from its logits. NumPy alone."""

from __future__ import annotations

import numpy as np

_COLDEST, _HOTTEST = 0.02, 50.0
"""Limits on a temperature. A stage that always agrees with the last one would want 0."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) logits to float64 log probabilities."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def answers_of(logits: np.ndarray, several: bool) -> np.ndarray:
    """(N,) class ids; of several labels at once (N, L) bool, the labels with a probability above a half."""
    return logits > 0 if several else logits.argmax(axis=1)


def differ(answers: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) bool: whether two answers are not the same class, or the same set of labels."""
    return answers != others if answers.ndim == 1 else (answers != others).any(axis=1)


def confidence_of(logits: np.ndarray, temperature: float, several: bool) -> np.ndarray:
    """(N,) probability of the answer. Of several labels at once: of the label that is least sure."""
    scaled = np.asarray(logits, np.float64) / temperature
    if several:
        return 1 / (1 + np.exp(-np.abs(scaled).min(axis=1)))
    return np.exp(log_softmax(scaled).max(axis=1))


def fit_temperature(logits: np.ndarray, answers: np.ndarray) -> float:
    """The temperature that gives these answers the highest likelihood (Guo et al. 2017, arXiv 1706.04599).

    As in Platt's scaling (1999) the targets are not quite certain: of N rows, one counts as if it had any answer.

    Args:
        logits: (N, C).
        answers: (N,) class ids, or (N, L) bool for several labels at once, as `answers_of` gives them.
    """
    doubt = 1 / (len(logits) + 1)

    def loss(temperature: float) -> float:
        scaled = np.asarray(logits, np.float64) / temperature
        if answers.ndim == 2:
            certain = np.where(answers, scaled, -scaled)
            given = (1 - doubt / 2) * np.logaddexp(0, -certain) + doubt / 2 * np.logaddexp(0, certain)
            return float(given.mean())
        every = log_softmax(scaled)
        of_answer = every[np.arange(len(every)), answers]
        return -float(((1 - doubt) * of_answer + doubt * every.mean(axis=1)).mean())

    # The loss is convex in 1 / temperature, so it has one minimum: a coarse grid, then finer ones around its best.
    low, high = np.log(_COLDEST), np.log(_HOTTEST)
    for _ in range(3):
        grid = np.linspace(low, high, 41)
        best = int(np.argmin([loss(float(np.exp(one))) for one in grid]))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 40)]
    return float(np.exp((low + high) / 2))
