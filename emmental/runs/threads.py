"""Threads on a shared machine: how many, how long they wait in a loop, and when other processes slow a run down.

PyTorch contains GNU OpenMP (`torch/lib/libgomp.so.1`). Its threads wait for one another in a busy loop. If another
process takes the core of one thread, the other threads waste their cores until it is back: an update takes several
times as long. `bound_spinning` shortens the loop. It must run before PyTorch is loaded, so this module
imports nothing heavy.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path, PurePosixPath

SPIN_COUNT = "3000"
"""Turns of the loop before a thread sleeps; GNU OpenMP has 300,000. `benchmarks/shared_machine.py` compares."""
_SPIN_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def bound_spinning(environment: MutableMapping[str, str] = os.environ) -> None:
    """Make waiting threads sleep soon, unless the user has set `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY`.

    OpenMP reads its variables when it is loaded: after PyTorch is loaded, this does nothing.
    """
    if "torch" not in sys.modules and not any(name in environment for name in _SPIN_VARIABLES):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT


def available_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those of its affinity, but at most its CPU quota, rounded up.

    Args:
        root: where `proc` and `sys` are found.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPU quota of the control groups (version 1 or 2) of this process, in cores; None without a limit."""
    quotas = [quota for folder in _cgroup_folders(root) if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def choose_threads(asked: int | None, processes: int = 1, environment: MutableMapping[str, str] = os.environ) -> int:
    """Threads for PyTorch in this process.

    Args:
        asked: `--threads`. None: `OMP_NUM_THREADS`, which torchrun sets; if that is not set, the number of cores.
        processes: number of processes that share the cores of this machine.
    """
    if asked is not None:
        return asked
    given = environment.get("OMP_NUM_THREADS", "").split(",")[0]
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return max(1, available_cores() // processes)


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """The control groups for CPU time of this process, each with its parents. The limit of each of them applies."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:  # "0::/path" in version 2, "4:cpu,cpuacct:/path" in version 1
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be the host's: then only the root, which is the container's own, exists.
        own = PurePosixPath(path.lstrip("/"))
        for mount in (mounted / controllers, mounted / "cpu") if controllers else (mounted, mounted / "unified"):
            for part in (own, *own.parents):
                if ".." not in part.parts:
                    yield mount / part


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():  # version 2: "max 100000" or "150000 100000", microseconds
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        return int(quota) / int(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


class Pace:
    """Tells when the updates of a run become much slower than its first ones.

    Args:
        clock: returns seconds, like `time.monotonic`.
    """

    UNCOUNTED, WINDOW, MUCH, GOOD = 5, 20, 2.0, 1.3

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._skipped = 0
        self._seconds: deque[float] = deque(maxlen=self.WINDOW)
        self._first: float | None = None
        self._slow = False

    def update(self) -> str | None:
        """Called after each update. A line for the log when the updates have become slow; None otherwise.

        It compares medians of 20 updates, so an evaluation or a checkpoint in between does not count. The line comes
        once, and again only after updates were fast in between.
        """
        now, last = self._clock(), self._last
        self._last = now
        if last is None or self._skipped < self.UNCOUNTED:
            self._skipped += last is not None
            return None
        self._seconds.append(now - last)
        if len(self._seconds) < self.WINDOW:
            return None
        median = statistics.median(self._seconds)
        if self._first is None:
            self._first = median
        was_slow, self._slow = self._slow, median > self._first * (self.GOOD if self._slow else self.MUCH)
        if was_slow or not self._slow:
            return None
        return (
            f"updates take {median:.2f} s now and took {self._first:.2f} s at first: other processes may use the "
            "cores; fewer --threads may help"
        )
