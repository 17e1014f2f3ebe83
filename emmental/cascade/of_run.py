"""A cascade of the models of a run, calibrated on training rows that were held back from all phases."""

from __future__ import annotations

import logging
from typing import Any

import torch

from emmental.cascade.building import build_cascade
from emmental.cascade.rows import Rows
from emmental.errors import UserError
from emmental.runs.run import Run
from emmental.tasks import Split, read_held_back, read_split
from emmental.tasks.set_aside import recorded_rows

logger = logging.getLogger(__name__)

FOLDER = "cascade"


def check_cascade(run: Run) -> None:
    """Check, before the training, that `--cascade` can be made of the run's models.

    `emmental.training.tasks.find_task` has checked the classes, and has held enough rows back.

    Raises:
        UserError: there is no dense model before the pruned ones.
    """
    if run.cascade and not any(phase.follows_dense for phase in run.phases):
        raise UserError("--cascade needs a dense model and a pruned one; this run makes a single model")


def warn_of_unknown_training(run: Run) -> None:
    """Warn if the run starts from a fine-tuned model that may have been trained on the rows held back."""
    if run.cascade and run.phases[0].follows_dense and recorded_rows(run.model_name_or_path) is None:
        logger.warning(
            "--cascade: nothing records which rows %s was trained on; the promise of the cascade holds only if these "
            "were not the rows held back",
            run.model_name_or_path,
        )


def cascade_of_run(run: Run) -> dict[str, Any] | None:
    """Write the cascade into the run's folder; returns what `build_cascade` does, or None if it cannot be made."""
    names = run.task.names

    def rows(split: Split) -> Rows:
        texts = split.texts_a if split.texts_b is None else list(zip(split.texts_a, split.texts_b, strict=True))
        return Rows(texts, [names[label] for label in split.labels])

    held_back = rows(read_held_back(run.task, run.data_dir))
    train, dev = (rows(read_split(run.task, run.data_dir, split)) for split in ("train", "dev"))
    first = run.phases[0]
    dense = run.model_name_or_path if first.follows_dense else first.folder
    pruned = dict.fromkeys(phase.folder for phase in reversed(run.phases) if phase.follows_dense)
    try:
        return build_cascade(
            [*pruned, dense],
            held_back.texts,
            run.output.record_folder(FOLDER),
            labels=held_back.labels,
            changed=run.changed,
            training=train,
            validation=dev,
            threads=torch.get_num_threads(),
            seed=run.seed,
        )
    except UserError as error:  # the models are finished and saved, so this must not end the run
        logger.warning("no cascade: %s", error)
        return None
