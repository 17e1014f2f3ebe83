"""Which training rows are held back from all training, to calibrate on rows that no model has seen.

They are chosen as in `emmental.tasks.set_aside`, by the hash of their text and without a seed, from the other end:
rows whose place is at least a limit, which never falls when rows are added. A row may move into training, never back.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from emmental.errors import UserError
from emmental.tasks.examples import read_split
from emmental.tasks.set_aside import TrainedRows, limit_for, row_places, trained_rows
from emmental.tasks.task import Task

SHARE, MOST = 0.2, 2000
"""This share of the rows is held back, at most so many, unless more are needed."""


def hold_back(
    task: Task, data_dir: str | Path | None, needed: int, earlier: TrainedRows | None = None, called: str = "the model"
) -> Task:
    """The task without some of its training rows, which `read_held_back` reads; the task records which they are.

    Args:
        task, data_dir: as for `read_split`.
        needed: rows that must be held back.
        earlier: what the model to start from records about its training.
        called: what the user calls that model: flag and value.

    Raises:
        UserError: more than half of the rows are needed, or the model was trained on them.
    """
    train = read_split(task, data_dir, "train")
    places = row_places(train.texts_a, train.texts_b)
    enough = len(places) >= 2 * needed and len(np.unique(places)) > 1
    limit = held_back_limit(places, needed) if enough else 1.0
    if (places >= limit).sum() < needed:
        raise UserError(
            f"{needed} training rows must be held back, at most half of all: it takes {2 * needed}, got "
            f"{len(places)}; a larger --changed takes fewer"
        )
    if earlier is not None and earlier.has_seen(places):
        limit = max(limit, 1.0 if earlier.held_back_from is None else earlier.held_back_from)
        if (places >= limit).sum() < needed:
            raise UserError(
                f"{called} was trained on the rows that would be held back: start from a model that was not, or give "
                "other rows to python -m emmental.cascade --texts"
            )
    record = task.trained_rows or trained_rows(places, 0.0)
    return replace(
        task,
        train=replace(task.layout("train"), held_back_from=limit),
        trained_rows=replace(record, held_back_from=limit),
    )


def held_back_limit(places: np.ndarray, needed: int) -> float:
    """The place from which rows are held back: `SHARE` of all, at most `MOST` rows, but at least `needed`.

    Args:
        places: (N,) of the training rows, see `row_places`; two or more different ones.
        needed: rows.
    """
    return 1 - limit_for(1 - places, SHARE, needed, max(MOST, needed), 1.0)
