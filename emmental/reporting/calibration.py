"""What int8 is calibrated on: the user's texts, training rows, or dev rows that are then not judged."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
from torch import Tensor

from emmental.data import FeatureDataset
from emmental.data.texts import Text, read_texts
from emmental.errors import UserError
from emmental.export.calibration import CALIBRATION_ROWS, CALIBRATION_TOKENS
from emmental.tasks import Task, read_split
from emmental.tasks.task import Split

_ROWS_AT_ONCE = 8


@dataclass(frozen=True)
class CalibrationTexts:
    """Texts without their labels.

    Attributes:
        texts: at least one.
        words: what they are, for people.
        dev_rows: (n,) the rows of the dev data that they are; empty if they are others.
    """

    texts: list[Text]
    words: str
    dev_rows: np.ndarray


def calibration_texts(file: str | None, task: Task, data_dir: str | None) -> CalibrationTexts:
    """The texts of `file`; without it training rows; without these at most half of the dev rows.

    Raises:
        UserError: as `read_texts` and `read_split`; the file is empty.
    """
    none = np.empty(0, np.int64)
    if file is not None:
        return calibration_file_texts(file)
    try:
        split = read_split(task, data_dir, "train")
    except UserError:  # a report needs no training data
        split = read_split(task, data_dir, "dev")
        rows = spread_rows(len(split.texts_a), max(min(CALIBRATION_ROWS, len(split.texts_a) // 2), 1))
        words = f"{len(rows)} of the dev rows, because no training rows are at hand; points are counted on the others"
        return CalibrationTexts(_texts(split, rows), words, rows)
    rows = spread_rows(len(split.texts_a), CALIBRATION_ROWS)
    return CalibrationTexts(_texts(split, rows), f"{len(rows)} training rows", none)


def calibration_file_texts(file: str) -> CalibrationTexts:
    """The first texts of a file.

    Raises:
        UserError: as `read_texts`; the file is empty.
    """
    texts = list(islice(read_texts(file, "--calibration_file"), CALIBRATION_ROWS))
    if not texts:
        raise UserError("--calibration_file holds no text")
    return CalibrationTexts(texts, f"{len(texts)} texts of {file}", np.empty(0, np.int64))


def spread_rows(rows: int, most: int) -> np.ndarray:
    """At most this many of the rows, spread evenly over all."""
    return np.unique(np.linspace(0, rows - 1, min(rows, most)).astype(int))


def calibration_batches(train: FeatureDataset) -> list[dict[str, Tensor]]:
    """Batches of training rows, spread evenly over all, which int8 is calibrated on; long rows are cut."""
    rows = rows_by_length(train, CALIBRATION_ROWS)
    batches = [train.batch(rows[start : start + _ROWS_AT_ONCE]) for start in range(0, len(rows), _ROWS_AT_ONCE)]
    names = ("input_ids", "attention_mask", "token_type_ids")
    return [{name: batch[name][:, :CALIBRATION_TOKENS] for name in names} for batch in batches]


def rows_by_length(dataset: FeatureDataset, most: int) -> np.ndarray:
    """At most this many rows, spread evenly over all, shortest first."""
    rows = spread_rows(len(dataset), most)
    return rows[np.argsort(dataset.lengths[rows], kind="stable")]


def _texts(split: Split, rows: np.ndarray) -> list[Text]:
    if split.texts_b is None:
        return [split.texts_a[row] for row in rows]
    return [(split.texts_a[row], split.texts_b[row]) for row in rows]
