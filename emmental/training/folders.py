"""The folders of a run: one for each model that it makes. All are locked and cleared before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from emmental.pretrained import weights_fingerprint
from emmental.runs.output_folder import WRITTEN_FILE, OutputFolder
from emmental.runs.resuming import checkpoint_to_resume, lock_output, open_output
from emmental.runs.run import Run
from emmental.training.facts import DataFacts
from emmental.training.forecast import work_after
from emmental.training.phases import Phase, PhaseContext
from emmental.training.route import DENSE_FOLDER, KEEP_FOLDER


def refuse_other_runs(parts: list[Run]) -> None:
    """Check that the folders hold no other run, unless they are cleared anyway.

    Raises:
        UserError: a folder holds one.
    """
    for part in parts:
        if not part.overwrite_output_dir:
            checkpoint_to_resume(part, flags_only=True)


def lock_run(run: Run) -> None:
    """Lock the folder that the parts of a run share. `--overwrite_output_dir` clears it and those of earlier parts.

    Raises:
        UserError: another run is using it.
    """
    folders = [run.folder / DENSE_FOLDER, *sorted(run.folder.glob(f"{KEEP_FOLDER}*"))]
    with run.processes.main_first():
        if not run.processes.is_main:
            return
        lock_output(run)
        for folder in folders if run.overwrite_output_dir else []:
            if (folder / WRITTEN_FILE).is_file():
                part = OutputFolder(folder)
                part.start_afresh()
                part.close()


@contextmanager
def opened(part: Run, context: PhaseContext, phases: Sequence[Phase]) -> Iterator[Run]:
    """Lock the folder of phases that make one model, inside the block. That of the whole run is locked already.

    Raises:
        UserError: see `open_output`.
    """
    if any(phase.follows_dense for phase in phases):  # a resumed run must learn from the same model
        part.contents["teacher_weights"] = weights_fingerprint(context.teacher or context.dense)
    own = part.folder != context.run.folder
    part.output = None if own else context.run.output
    try:
        open_output(part)
        yield part
    finally:
        if own and part.output is not None:
            part.output.close()


def runs_by_folder(run: Run, facts: DataFacts) -> dict[Path, Run]:
    """Folder -> its run, with the settings of the last phase that saves there, and the work that comes after it."""
    parts = {}
    for phase, after in zip(run.phases, work_after(run.phases, facts), strict=True):
        parts[phase.folder] = part = phase.part_of(run)
        part.work_after = after
    return parts
