"""Faults at the calls through which a run changes the disk: each is counted, and one of them goes wrong.

All of it happens in a forked child, after `install`; the parent reads the counts from memory that both share.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import mmap
import os
import resource
import shutil
import signal
import stat
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import transformers.modeling_utils

from emmental.data import features
from emmental.export import package
from emmental.runs import checkpoints
from emmental.teaching import teachers

Call = Callable[[], object]
Fault = Callable[[Call, "Path | None"], object]
"""Given the call that is due and the file it writes, if it does, does what is to happen in its place."""

SAVE_CALLS = (
    *((os, name) for name in ("fsync", "replace", "rename", "mkdir", "unlink", "rmdir")),
    *((shutil, name) for name in ("rmtree", "copyfile")),
    *((Path, name) for name in ("write_text", "write_bytes")),
    *((module, "save_file") for module in (checkpoints, features, package, teachers)),
    (transformers.modeling_utils, "safe_save_file"),
    (builtins, "open"),
)
"""Owner and name of every call that is counted; `open` only where it opens for writing."""
_WRITTEN_FILE = {"save_file": 1, "safe_save_file": 1, "copyfile": 1, "write_text": 0, "write_bytes": 0}
"""Name of a call that writes a file -> place of that file among its arguments."""


class SaveCalls:
    """Counts the calls of a child, and lets a fault happen at some of them.

    Args:
        first, last: numbers of the calls, from 1, that go wrong; none by default.
        fault: what happens then.
    """

    def __init__(self, first: int = 0, last: int = 0, fault: Fault | None = None) -> None:
        self._shared = mmap.mmap(-1, 8)
        self._first, self._last, self._fault = first, last, fault
        self._inside = False

    @property
    def made(self) -> int:
        """Calls so far, in whatever process."""
        return struct.unpack("q", self._shared[:8])[0]

    def install(self) -> None:
        """Replace every one of `SAVE_CALLS` in this process."""
        for owner, name in SAVE_CALLS:
            setattr(owner, name, self._counted(getattr(owner, name), name))

    def _counted(self, original: Callable, name: str) -> Callable:
        def counted(*args: object, **kwargs: object) -> object:
            mode = str(args[1] if len(args) > 1 else kwargs.get("mode", "r"))
            if self._inside or (name == "open" and not {"w", "a", "x"} & set(mode)):
                return original(*args, **kwargs)
            number = self.made + 1
            self._shared[:8] = struct.pack("q", number)
            if not (self._fault and self._first <= number <= self._last):
                return original(*args, **kwargs)
            self._inside = True
            try:
                return self._fault(lambda: original(*args, **kwargs), _file_of(name, args))
            except OSError:
                if not kwargs.get("ignore_errors"):  # the real call does not fail then
                    raise
            finally:
                self._inside = False

        return counted


def _file_of(name: str, args: tuple) -> Path | None:
    return Path(args[_WRITTEN_FILE[name]]) if name in _WRITTEN_FILE else None


def killed_before(call: Call, file: Path | None) -> object:
    """SIGKILL in the place of the call."""
    os.kill(os.getpid(), signal.SIGKILL)
    return call()


def killed_after(call: Call, file: Path | None) -> object:
    """SIGKILL as soon as the call is done."""
    call()
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def killed_halfway(call: Call, file: Path | None) -> object:
    """SIGKILL when half of the file is written; a call that writes none is left alone."""
    result = call()
    if file is None or not file.is_file():
        return result
    os.truncate(file, file.stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def terminated(call: Call, file: Path | None) -> object:
    """SIGTERM just before the call."""
    os.kill(os.getpid(), signal.SIGTERM)
    return call()


def failing(number: int) -> Fault:
    """The call fails with this error number, as on a full disk (ENOSPC) or one that was taken away (EIO, EACCES)."""

    def fail(call: Call, file: Path | None) -> object:
        raise OSError(number, os.strerror(number), None if file is None else str(file))

    return fail


def last_call(fault: Fault, first: int) -> int:
    """The last of the calls, from `first` on, that a fault is tried at: half a file needs a call that writes one."""
    return sys.maxsize if fault is killed_halfway else first


KILLS: dict[str, Fault] = {
    "SIGKILL before a call": killed_before,
    "SIGKILL after a call": killed_after,
    "SIGKILL with a file half written": killed_halfway,
    "SIGTERM at a call": terminated,
}
FAILURES = {
    "full disk (ENOSPC)": errno.ENOSPC,
    "failing disk (EIO)": errno.EIO,
    "lost permission (EACCES)": errno.EACCES,
    "read-only file system (EROFS)": errno.EROFS,
}


def _refusing(owner: object, name: str, number: int, folders: bool = False, old: bool = False) -> Callable[[], None]:
    """What a run takes as `before`: a call is refused. With `folders`, only for folders; `old`: that are older."""

    def install() -> None:
        original, started = getattr(owner, name), time.time()

        def refuse(place: object, *args: object, **kwargs: object) -> object:
            facts = os.stat(place) if folders else None
            if folders and not (stat.S_ISDIR(facts.st_mode) and not (old and facts.st_ctime >= started)):
                return original(place, *args, **kwargs)
            raise OSError(number, os.strerror(number))

        setattr(owner, name, refuse)

    return install


LACKS = {
    "without locks": _refusing(fcntl, "flock", errno.ENOSYS),
    "that locks only with a daemon": _refusing(fcntl, "flock", errno.ENOLCK),
    "that flushes no folders": _refusing(os, "fsync", errno.EINVAL, folders=True),
    "without permissions": _refusing(os, "chmod", errno.EPERM),
    "that does not rename older folders": _refusing(os, "rename", errno.EXDEV, folders=True, old=True),
}


def limit_file_size(size: int) -> Callable[[], None]:
    """What a run takes as `before`: the kernel refuses every file that would grow beyond `size` bytes (EFBIG)."""

    def install() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return install
