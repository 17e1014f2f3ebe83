"""How a run ends that cannot go on."""

from __future__ import annotations

import difflib
from pathlib import Path


class UserError(ValueError):
    """A mistake that the user can mend: its message is one line, and a command line shows that line alone."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite, so the update was not made and nothing was saved."""


class StoppedBySignal(SystemExit):
    """Training was asked to stop; its state is saved. The exit status is 128 + the signal's number."""


def folders_near(name: str) -> str:
    """What to say of folders with names like that of a missing one; empty where there are none."""
    missing = Path(name)
    while missing.parent != missing and not missing.parent.is_dir():
        missing = missing.parent
    if missing.exists() or not missing.parent.is_dir():
        return ""
    try:
        folders = {path.name: path for path in missing.parent.iterdir() if path.is_dir()}
    except OSError:
        return ""
    found = difflib.get_close_matches(missing.name, folders, n=3)
    return f"there is {', '.join(str(folders[each]) for each in found)}" if found else ""
