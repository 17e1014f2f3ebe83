"""What a run reads is never removed or replaced by what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from emmental.atomic import refuse_losing
from emmental.errors import UserError
from emmental.runs.output_folder import PARTS, WRITTEN_FILE, recorded_in

if TYPE_CHECKING:
    from emmental.runs.run import Run

_MODELS = ["model_name_or_path", "teacher_name_or_path", "tokenizer_name", "config_name"]
_MODELS += ["student_config", "student_pretrained_weights", "teacher_name"]
_DATA = [
    "data_dir",
    "train_file",
    "validation_file",
    "test_file",
    "unlabeled_file",
    "feature_cache_dir",
    "data_file",
    "token_counts",
]


def refuse_losing_inputs(run: Run) -> None:
    """Check that a run's folder, and those of its parts, take nothing away that the run reads.

    It is refused with and without the flag that starts afresh: a training replaces the model in its folder too, and
    without its model it could not be resumed. An evaluation may read the model of its own folder.

    Raises:
        UserError: a model, teacher, tokenizer, configuration, data set, corpus or cache would be lost.
    """
    if run.folder is None:
        return
    flag, trains = f"--{run.folder_flags.folder} {run.folder}", getattr(run, "do_train", True)
    places = [run.folder, *(part for name in PARTS for part in sorted(run.folder.glob(name)))]
    lost = [path for place in places for path in _written_into(place)]
    refuse_losing({f"--{name}": getattr(run, name, None) for name in _DATA}, lost, flag)
    if trains:
        models = {f"--{name}": getattr(run, name, None) for name in _MODELS}
        refuse_losing(models, lost, flag, itself=places)


def _written_into(folder: Path) -> Iterator[Path]:
    """What earlier runs wrote there, and places that every run writes to."""
    yield from folder.glob("checkpoint-*")
    yield from (folder / name for name in ("config.json", "pruned", WRITTEN_FILE))
    try:
        yield from (folder / name for name in recorded_in(folder))
    except UserError:  # a damaged record: the run names it before it removes anything
        return
