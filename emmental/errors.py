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


def names_near(name: str, files: bool = False) -> str:
    """A hint that names folders (or `files`) with similar names; empty if there are none."""
    missing = Path(name)
    while missing.parent != missing and not missing.parent.is_dir():
        missing = missing.parent
    wants_files = files and missing == Path(name)
    if missing.exists() or not missing.parent.is_dir():
        return ""
    try:
        there = {path.name: path for path in missing.parent.iterdir() if path.is_file() == wants_files}
    except OSError:
        return ""
    found = difflib.get_close_matches(missing.name, there, n=3)
    return f"there is {', '.join(str(there[each]) for each in found)}" if found else ""
