"""Run the trainer in a forked child, and kill it where a test wants: no imports to wait for, a real SIGKILL."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path


def run(main: Callable[[Sequence[str]], object], argv: Sequence[str], log: Path, before: Callable[[], None]) -> int:
    """Call `main(argv)` in a child after `before()`; returns the exit status, or -n when signal n ended the child.

    The child's output goes to `log`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become(main, argv, log, before)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _become(main: Callable[[Sequence[str]], object], argv: Sequence[str], log: Path, before: Callable) -> None:
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        before()
        main(argv)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def kill_at_call(module: object, name: str, number: int) -> Callable[[], None]:
    """What `run` takes as `before`: the child kills itself with SIGKILL at the `number`-th call of `module.name`."""

    def install() -> None:
        original, calls = getattr(module, name), 0

        def counted(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(module, name, counted)

    return install
