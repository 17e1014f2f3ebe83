"""Where caches are kept if no flag says it."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

from emmental.atomic import folder_of_user
from emmental.errors import UserError

logger = logging.getLogger(__name__)


def cache_folder(asked: str | None = None) -> Path:
    """The folder that a flag names, or the usual one.

    Raises:
        UserError: no folder is named, and no usual one can be written to.
    """
    return Path(asked) if asked else _usual_folder()


@lru_cache(maxsize=1)
def _usual_folder() -> Path:
    """`emmental` in XDG_CACHE_HOME or `~/.cache`. Where that cannot be written to, a folder of this user in TMPDIR."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emmental"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = f"{folder} is read-only"
    except (RuntimeError, OSError) as error:  # RuntimeError: a user without home folder
        reason = " ".join(str(error).split())
    try:
        folder = folder_of_user()
    except OSError as error:
        raise UserError(f"no folder for caches ({reason}; {error}); give --feature_cache_dir") from error
    logger.warning("caches go to %s (%s); --feature_cache_dir names another folder", folder, reason)
    return folder
