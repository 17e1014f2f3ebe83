"""Opening a run's folder: which checkpoint it goes on from, and whether it is that run at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emmental.errors import UserError
from emmental.runs.checkpoints import checkpoints_in, newest_good_checkpoint, read_state
from emmental.runs.output_folder import OutputFolder
from emmental.runs.processes import Environment


@dataclass(frozen=True)
class RunFlags:
    """Names of a program's flags, for messages.

    Attributes:
        folder: where the run writes.
        afresh: starts afresh there.
    """

    folder: str = "--output_dir"
    afresh: str = "--overwrite_output_dir"


def open_output(
    folder: str | Path,
    environment: Environment,
    identity: dict[str, Any],
    afresh: bool,
    accept_changes: bool,
    flags: RunFlags,
) -> OutputFolder | None:
    """Lock a run's folder, clear it if asked, and see that a run which stands there is this one.

    Every rank calls it once everything else has been checked; rank 0 alone gets the folder.

    Args:
        folder: of the run.
        environment: this process.
        identity, accept_changes, flags: see `checkpoint_to_resume`.
        afresh: remove what this program wrote there.

    Raises:
        UserError: see `OutputFolder` and `checkpoint_to_resume`.
    """
    with environment.main_first():
        if not environment.is_main:
            return None
        output = OutputFolder(folder, flags.folder)
        try:
            if afresh:
                output.start_afresh()
            checkpoint_to_resume(folder, identity, accept_changes, flags)
        except BaseException:
            output.close()
            raise
        return output


def checkpoint_to_resume(
    folder: str | Path, identity: dict[str, Any], accept_changes: bool, flags: RunFlags
) -> Path | None:
    """The newest good checkpoint in `folder`, seen to be of the run that is about to go on; None when there is none.

    Args:
        folder: of the run.
        identity: what decides the run's result, as its checkpoints hold it under `arguments`.
        accept_changes: go on although that differs.
        flags: how the user calls them.

    Raises:
        UserError: every checkpoint is damaged, or they belong to another run.
    """
    found = newest_good_checkpoint(folder)
    if found is None and checkpoints_in(folder):
        raise UserError(f"every checkpoint in {flags.folder} {folder} is damaged; {flags.afresh} starts afresh")
    if found is None or accept_changes:
        return found
    before = read_state(found).get("arguments")
    before = before if isinstance(before, dict) else {}
    changed = [
        f"{name} {before.get(name)!r} -> {identity.get(name)!r}"
        for name in sorted({*before, *identity})
        if before.get(name) != identity.get(name)
    ]
    if changed:
        raise UserError(
            f"{flags.folder} {folder} holds another run ({found.name}): {'; '.join(changed)}. Choose another folder, "
            f"{flags.afresh} to start afresh, or --accept_changes to go on all the same"
        )
    return found
