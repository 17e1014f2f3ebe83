"""Opens a run's folder: finds the checkpoint to resume from, and checks that it belongs to this run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from emmental.errors import UserError
from emmental.runs.checkpoints import checkpoints_in, newest_good_checkpoint, read_state
from emmental.runs.output_folder import OutputFolder
from emmental.runs.run import Run

_GONE = ("hidden_cache_limit_gb",)
"""Flags of earlier versions that are not asked for any more."""


def open_output(run: Run) -> None:
    """Lock a run's folder, if it is not locked yet, and check that it holds no other run.

    Every rank calls it after all other checks. Only rank 0 gets the folder, as `run.output`.

    Raises:
        UserError: see `OutputFolder` and `checkpoint_to_resume`.
    """
    with run.processes.main_first():
        if not run.processes.is_main:
            return
        if run.output is None:
            lock_output(run)
        checkpoint_to_resume(run)
    run.record()


def lock_output(run: Run) -> None:
    """Lock a run's folder, as `run.output`, and clear it if the flags say so. For rank 0.

    Raises:
        UserError: see `OutputFolder`.
    """
    run.output = OutputFolder(run.folder, f"--{run.folder_flags.folder}")
    if getattr(run, run.folder_flags.afresh):
        run.output.start_afresh()


def checkpoint_to_resume(run: Run, flags_only: bool = False) -> Path | None:
    """The newest good checkpoint in the run's folder; it belongs to this run. None if there is none.

    Args:
        run: the run to start or to resume.
        flags_only: compare only flags, because data and teacher are not known yet.

    Raises:
        UserError: every checkpoint is damaged, or they belong to another run and `--accept_changes` is not given.
    """
    folder, afresh = f"--{run.folder_flags.folder} {run.folder}", f"--{run.folder_flags.afresh}"
    found = newest_good_checkpoint(run.folder)
    if found is None and checkpoints_in(run.folder):
        raise UserError(f"every checkpoint in {folder} is damaged; {afresh} starts afresh")
    if found is None or run.accept_changes:
        return found
    recorded, identity = read_state(found).get("arguments"), run.identity()
    recorded = {} if not isinstance(recorded, dict) else {k: v for k, v in recorded.items() if k not in _GONE}
    declared = {one.name: one for one in run.flags.declared}
    flags = [declared[name] for name in run.flags.of_result()]
    unknown = {one.name: one.default if one.earlier is None else one.earlier for one in flags}
    before = {**unknown, **recorded}
    if flags_only:
        identity = run.flags.of_result()
        before = {name: before.get(name) for name in identity}
    names = sorted({*before, *identity} - (declared.keys() - identity.keys()))
    changed = [name for name in names if before.get(name) != identity.get(name)]
    if changed:
        whose = "another run" if unknown.keys() <= recorded.keys() else "another run, of an earlier version"
        what = "; ".join(f"{name} {_shown(before.get(name))} -> {_shown(identity.get(name))}" for name in changed)
        new = [one for one in flags if one.earlier is not None and one.name in changed and one.name not in recorded]
        as_then = "".join(f"--{one.name} {one.earlier} " for one in new)
        raise UserError(
            f"{folder} holds {whose} ({found.name}): {what}. Choose another folder, {afresh} to start afresh, or "
            f"{as_then}--accept_changes to resume anyway"
        )
    return found


def _shown(value: Any) -> str:
    """A value as messages show it: fingerprints with their first eight digits."""
    return repr(value[:8] if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value)
