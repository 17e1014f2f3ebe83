"""The errors that end a run."""

from __future__ import annotations

import difflib
from pathlib import Path


class UserError(ValueError):
    """A mistake that the user can correct. The message is one line, and the command line shows only that line."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite. The update was not made, and nothing was saved."""


class StoppedBySignal(SystemExit):
    """A signal stopped the training, and its state is saved. The exit status is 128 + the signal's number."""


def folders_near(name: str) -> str:
    """A hint that names folders with similar names; empty if there are none."""
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
