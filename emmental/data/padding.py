"""Pads rows of different length to one rectangle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def pad_rows(
    flat: np.ndarray, starts: np.ndarray, lengths: np.ndarray, value: int, multiple_of: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Cut B rows out of `flat` (total,) and pad them on the right to the longest.

    Args:
        flat: the elements of all rows, one row after another.
        starts, lengths: (B,) where each row begins, and how long it is.
        value: value of the padding.
        multiple_of: T is rounded up to a multiple of it.

    Returns:
        (B, T) of int64, padded; (B, T) of bool, True where it is no padding.
    """
    width = -(-int(lengths.max(initial=1)) // multiple_of) * multiple_of
    positions = np.arange(width)  # (T,)
    kept = positions < lengths[:, None]  # (B, T)
    source = np.where(kept, starts[:, None] + positions, 0)  # (B, T)
    return np.where(kept, flat[source], value).astype(np.int64), kept


def pad_lists(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """B lists of numbers, padded on the right with `value` to the longest: (B, T) int64."""
    lengths = np.array([len(row) for row in rows])
    return torch.from_numpy(pad_rows(np.concatenate([*rows]), np.cumsum(lengths) - lengths, lengths, value)[0])
