"""How a run ends that cannot go on."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
    """A loss or a gradient is NaN or infinite, so the update was not made and nothing was saved."""


class StoppedBySignal(SystemExit):
    """Training was asked to stop; its state is saved. The exit status is 128 + the signal's number."""


@contextmanager
def user_mistakes() -> Iterator[None]:
    """Turn what the user got wrong inside the block into one line on standard error and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        logger.debug("where it happened", exc_info=True)
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        raise SystemExit(2) from error
