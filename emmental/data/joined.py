"""Rows with labels, then rows without, as one data set. The teacher labels all; the task's loss uses known labels."""

from __future__ import annotations

import hashlib

import numpy as np

from emmental.data.features import FeatureDataset

UNLABELLED = -100
"""Label of a row without a label, among classes. Among scores, and several labels, it is NaN."""


class JoinedDataset(FeatureDataset):
    """Two data sets, one after the other, in memory.

    Args:
        labelled: rows of a task, with labels.
        unlabelled: more rows, tokenised in the same way, without known labels.
    """

    def __init__(self, labelled: FeatureDataset, unlabelled: FeatureDataset) -> None:
        self._parts = (labelled, unlabelled)
        self.pad_to_multiple_of, self.pad_token_id = labelled.pad_to_multiple_of, labelled.pad_token_id
        self.fingerprint = hashlib.sha256(f"{labelled.fingerprint} {unlabelled.fingerprint}".encode()).hexdigest()
        self.cut, self.longest = labelled.cut + unlabelled.cut, max(labelled.longest, unlabelled.longest)
        self.known, self.blank = None, labelled.blank + unlabelled.blank
        self.notes = [*labelled.notes, *unlabelled.notes]
        self.unknown = labelled.unknown  # that of the other part is said where it is read
        known = labelled.labels
        missing = np.nan if np.issubdtype(known.dtype, np.floating) else UNLABELLED
        self.labels = np.concatenate([known, np.full((len(unlabelled), *known.shape[1:]), missing, dtype=known.dtype)])
        self._input_ids = np.concatenate([part._input_ids for part in self._parts])
        self._boundaries = np.concatenate([part._boundaries for part in self._parts])
        self._offsets = np.concatenate([labelled._offsets, unlabelled._offsets[1:] + labelled._offsets[-1]])
        self.lengths = np.diff(self._offsets).astype(np.int32)

    def __reduce__(self) -> tuple:
        return JoinedDataset, self._parts

    @property
    def indices(self) -> list[str]:
        """The examples' names, of both parts."""
        return [name for part in self._parts for name in part.indices]
