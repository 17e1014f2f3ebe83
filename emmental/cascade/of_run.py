"""A cascade of the models of a run, calibrated on its dev rows, which no stage was trained on."""

from __future__ import annotations

import logging
from functools import partial

import torch

from emmental.cascade.building import Training, build_cascade
from emmental.cascade.promise import DELTA, check_promise
from emmental.cascade.report import left_out, summary, table
from emmental.cascade.words import Text
from emmental.errors import UserError
from emmental.runs.run import Run
from emmental.tasks import Split, read_split

logger = logging.getLogger(__name__)

FOLDER = "cascade"


def refuse_impossible_cascade(run: Run) -> None:
    """Refuse `--cascade` before the training, if the run's models or rows cannot make one.

    Raises:
        UserError: scores, no dense model before the pruned ones, or too few dev rows for `--changed`.
    """
    if not run.cascade:
        return
    if run.task.is_regression:
        raise UserError("--cascade needs classes: nothing says how sure a score is")
    if not any(phase.follows_dense for phase in run.phases):
        raise UserError("--cascade needs a dense model and a pruned one; this run makes a single model")
    try:
        check_promise(len(run.datasets[run.task.name, "dev"]), run.changed, DELTA)
    except UserError as error:
        raise UserError(f"--cascade is calibrated on the dev rows: {error}") from None


def cascade_of_run(run: Run) -> list[str]:
    """Write the cascade into the run's folder; returns its table and its promise as lines."""
    train, dev = (read_split(run.task, run.data_dir, split) for split in ("train", "dev"))
    first = run.phases[0]
    dense = run.model_name_or_path if first.follows_dense else first.folder
    pruned = dict.fromkeys(phase.folder for phase in reversed(run.phases) if phase.follows_dense)
    names_of = partial(run.task.kind.names_of, run.task)
    try:
        record = build_cascade(
            [*pruned, dense],
            _texts(dev),
            run.output.record_folder(FOLDER),
            labels=names_of(dev.labels),
            changed=run.changed,
            training=Training(_texts(train), names_of(train.labels)),
            threads=torch.get_num_threads(),
            seed=run.seed,
        )
    except UserError as error:  # the models are finished and saved, so this must not end the run
        return [f"no cascade: {error}"]
    out = left_out(record)
    return [
        *table(record).splitlines(),
        summary(record),
        *([f"left out, because they do not pay: {', '.join(out)}"] if out else []),
        str(run.folder / FOLDER),
    ]


def _texts(split: Split) -> list[Text]:
    if split.texts_b is None:
        return split.texts_a
    return list(zip(split.texts_a, split.texts_b, strict=True))
