"""Brings a teacher's scores into the unit of the labels."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

_FEWEST_ROWS = 8
_FOLLOWS = 0.5
"""The least correlation with the labels of a teacher that is taken for one in another unit."""


def in_unit_of_labels(scores: Tensor, labels: np.ndarray | None, called: str) -> Tensor:
    """A teacher's scores (N, 1) in the unit of the labels (N,); NaN in either where it is not known.

    If the scores are further from the labels than their mean is, but follow them, they are in another unit: the line
    of least squares maps them. All others are returned as they are.

    Args:
        called: the teacher's name in messages.
    """
    if labels is None:
        return scores
    given, wanted = scores[:, 0].double().cpu().numpy(), np.asarray(labels, np.float64)
    known = np.isfinite(given) & np.isfinite(wanted)
    given, wanted = given[known], wanted[known]
    if len(given) < _FEWEST_ROWS or np.ptp(wanted) == 0 or ((given - wanted) ** 2).mean() <= wanted.var():
        return scores
    correlation = 0.0 if np.ptp(given) == 0 else float(np.corrcoef(given, wanted)[0, 1])
    if abs(correlation) < _FOLLOWS:
        logger.warning(
            "%s gives scores that do not follow the labels (correlation %.2f on the training rows): it teaches "
            "something else",
            called,
            correlation,
        )
        return scores
    slope = correlation * wanted.std() / given.std()
    shift = wanted.mean() - slope * given.mean()
    logger.warning(
        "%s gives scores in another unit than the labels: %.4g to %.4g against %.4g to %.4g; they are mapped by "
        "%.6g * score + %.6g",
        called,
        *(float(edge) for values in (given, wanted) for edge in (values.min(), values.max())),
        slope,
        shift,
    )
    return (scores.double() * slope + shift).to(torch.float32)
