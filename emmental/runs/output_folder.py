"""The folder a run writes to: locked while it runs. Only files of this program are ever removed."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from emmental import atomic
from emmental.errors import UserError
from emmental.runs.checkpoints import checkpoints_in, remove_checkpoint

logger = logging.getLogger(__name__)

WRITTEN_FILE, LOCK = ".emmental.json", ".emmental.lock"
PARTS = ("dense", "keep-*")
"""Names of the folders, inside that of a run, that its parts write to."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_STAGED = ".final-model"
_HELD: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _keep_users_file(file: Path) -> None:
    """Rename a file of the user that is where this program will write."""
    kept = atomic.keep_beside(file, "kept")
    logger.warning("%s was not written by this program; it is kept as %s", file, kept.name)


def _let_go_of_locks() -> None:
    for lock in list(_HELD):
        lock.close()


# A forked child, such as a process that loads batches, shares its parent's lock and would keep it after a crash.
os.register_at_fork(after_in_child=_let_go_of_locks)


class OutputFolder:
    """A run's output folder.

    `.emmental.json` records every file that the program writes there, so that `start_afresh` can remove these and
    nothing else. A file of the user with such a name is renamed, not overwritten. A lock keeps a second run out; the
    system releases it however the process ends.

    Args:
        path: the folder; it is made if missing.
        flag: the flag that named it, for messages.

    Raises:
        UserError: another run is using it, it cannot be written to, or its record is damaged.
    """

    def __init__(self, path: str | Path, flag: str = "--output_dir") -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / LOCK, "w")  # noqa: SIM115 - held open for as long as the run
        except OSError as error:
            raise UserError(f"{flag} {path} cannot be written to: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                self._lock.close()
                raise UserError(f"{flag} {path} is in use by another run; wait for it or choose another") from error
            logger.warning("%s %s: no locks there (%s), so start no second run in it", flag, path, error.strerror)
        _HELD.add(self._lock)
        # The user may have deleted a damaged record: the files of a run in this folder are still this program's.
        self._lost_its_record = bool(checkpoints_in(self.path)) and not (self.path / WRITTEN_FILE).exists()
        try:
            places = {(self.path / name).parent for name in self._recorded()}
        except ValueError:
            self.close()
            raise
        for place in {self.path, *places}:
            atomic.remove_leftovers(place)
        if (self.path / _STAGED / atomic.MANIFEST).is_file():
            atomic.remove_folder(self.path / _STAGED)

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def record(self, *names: str) -> None:
        """Record that this program will write these files, named relative to the folder.

        An existing file that is not recorded is the user's: it is renamed and kept.
        """
        for name in sorted(set(names) - set(self._recorded())):
            if os.path.lexists(self.path / name) and not self._lost_its_record:
                _keep_users_file(self.path / name)
        self.adopt(*names)

    def record_folder(self, name: str) -> Path:
        """Record that this program will write a folder with `emmental.atomic`; one of the user is renamed."""
        if os.path.lexists(self.path / name) and not atomic.is_ours(self.path / name, damaged_too=True):
            _keep_users_file(self.path / name)
        self.adopt(name)
        return self.path / name

    def adopt(self, *names: str) -> None:
        """Record that this program wrote these files."""
        known = self._recorded()
        if not set(names) <= set(known):
            atomic.write_json(self.path / WRITTEN_FILE, {"written": sorted({*known, *names})})

    def start_afresh(self) -> None:
        """Remove every checkpoint, every recorded file, and folders that are then empty. Everything else stays."""
        for checkpoint in checkpoints_in(self.path):
            remove_checkpoint(checkpoint)
        for name in self._recorded():
            file = self.path / name
            if file.is_dir() and not file.is_symlink():
                remove_checkpoint(file)
            else:
                file.unlink(missing_ok=True)
            for parent in file.relative_to(self.path).parents[:-1]:
                with suppress(OSError):
                    (self.path / parent).rmdir()
        (self.path / WRITTEN_FILE).unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> Path:
        """Record and write a JSON file."""
        self.record(name)
        atomic.write_json(self.path / name, value)
        return self.path / name

    def write_text(self, name: str, text: str) -> Path:
        """Record and write a text file."""
        self.record(name)
        atomic.write_text(self.path / name, text)
        return self.path / name

    def save_model(self, model: Any, tokenizer: Any | None) -> None:
        """Save model and tokenizer directly in the folder. `config.json` comes last, so half a model never loads."""
        staged = self.path / _STAGED
        with atomic.atomic_folder(staged) as temporary:
            model.save_pretrained(temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
        files = sorted(staged.iterdir(), key=lambda file: (file.name == "config.json", file.name))
        files = [file for file in files if file.name != atomic.MANIFEST]
        self.record(*(file.name for file in files))
        (self.path / "config.json").unlink(missing_ok=True)
        for file in files:
            file.replace(self.path / file.name)
        atomic.remove_folder(staged)

    def _recorded(self) -> list[str]:
        return recorded_in(self.path)


def recorded_in(folder: Path) -> list[str]:
    """Names of the files that runs wrote into an output folder, relative to it; empty if it is none.

    Raises:
        UserError: the record is damaged, or names files outside the folder.
    """
    try:
        written = list(json.loads((folder / WRITTEN_FILE).read_text(encoding="utf-8"))["written"])
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / WRITTEN_FILE} is damaged; delete it to go on") from error
    names = [str(name) for name in written]
    if not all(_holds(folder, name) for name in names):
        raise UserError(f"{folder / WRITTEN_FILE} names files outside the output folder; delete it to go on")
    return names


def _holds(folder: Path, name: str) -> bool:
    """Whether a name is that of a file inside the folder, after following links."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in name:
        return False
    return (folder / path).parent.resolve().is_relative_to(folder.resolve())
