"""The linear model of the bags of words."""

from __future__ import annotations

from sklearn.linear_model import LogisticRegression

_INVERSE_REGULARIZATION = 10.0


def classifier() -> LogisticRegression:
    """The linear model of classes, not fitted yet."""
    return LogisticRegression(C=_INVERSE_REGULARIZATION, max_iter=200, tol=1e-3)
