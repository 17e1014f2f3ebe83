"""How a run ends that cannot go on."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake that the user can mend: its message is one line, and a command line shows that line alone."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite, so the update was not made and nothing was saved."""


class StoppedBySignal(SystemExit):
    """Training was asked to stop; its state is saved. The exit status is 128 + the signal's number."""
