"""Run a program in a forked child, and kill it where a test wants: no imports to wait for, a real SIGKILL."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

LIMIT = 300.0
"""Seconds after which a child that hangs is killed."""


def run(
    main: Callable[[Sequence[str]], object],
    argv: Sequence[str],
    log: Path,
    before: Callable[[], None],
    signal_after: tuple[int, float] | None = None,
) -> int:
    """Call `main(argv)` in a child after `before()`; returns the exit status, or -n when signal n ended the child.

    The child's output goes to `log`. `signal_after` is a signal and after how many seconds the child gets it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become(main, argv, log, before)
    timers = [threading.Timer(LIMIT, _send, (child, signal.SIGABRT))]
    timers += [] if signal_after is None else [threading.Timer(signal_after[1], _send, (child, signal_after[0]))]
    for timer in timers:
        timer.start()
    _, status = os.waitpid(child, 0)
    for timer in timers:
        timer.cancel()
        timer.join()
    return os.waitstatus_to_exitcode(status)


def _send(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, number)


def _become(main: Callable[[Sequence[str]], object], argv: Sequence[str], log: Path, before: Callable) -> None:
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        # The lock of the bars is a semaphore that forked processes share: a killed one would keep it for ever.
        tqdm.set_lock(threading.RLock())
        before()
        main(argv)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
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


def as_two_ranks(before: Callable[[int], None] = lambda rank: None) -> Callable[[], None]:
    """What `run` takes as `before`: the child becomes rank 0 of two, a child of its own rank 1, as under torchrun.

    `before` is called in each with its rank. The status of `run` is that of rank 0.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def split() -> None:
        rank = int(os.fork() == 0)
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        before(rank)

    return split
