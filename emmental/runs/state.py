"""State of a training besides model and optimizer: average losses, signals, position in the data."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emmental.data import LengthGroupedBatches
from emmental.runs.processes import Processes

logger = logging.getLogger(__name__)


def seed_generators(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class LossAverages:
    """Means of the named losses over updates and ranks: since the last log entry, and of the total since the start.

    Sums stay on the device of the losses until they are read. Every rank calls every method.

    Args:
        processes: this process.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._sums: dict[str, Tensor] = {}
        self._updates = {"recent": 0, "all": 0}

    def add(self, losses: dict[str, Tensor], divisor: float) -> None:
        """Add the losses of one micro-batch, `total` among them, each divided as in `Learner.optimize`."""
        shares = {f"recent/{name}": value for name, value in losses.items()} | {"all/total": losses["total"]}
        for name, value in shares.items():
            share = value.detach().double() / divisor
            self._sums[name] = self._sums[name] + share if name in self._sums else share

    def update_done(self) -> None:
        """Count a completed update."""
        self._updates = {name: count + 1 for name, count in self._updates.items()}

    def take_recent(self) -> dict[str, float]:
        """Means since the last call."""
        names = [name for name in self._sums if name.startswith("recent/")]
        means = self._means(names, self._updates["recent"])
        for name in names:
            del self._sums[name]
        self._updates["recent"] = 0
        return {name.removeprefix("recent/"): mean for name, mean in means.items()}

    def mean_total(self) -> float:
        """Mean of the total loss over all updates; 0 before the first."""
        return self._means(["all/total"], self._updates["all"])["all/total"] if self._sums else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The exact sums of every rank, as values of JSON."""
        ranks = self._processes.gather(self._values(list(self._sums))[None])
        return {"names": list(self._sums), "sums": [rank[0].tolist() for rank in ranks], "updates": self._updates}

    def form_of_state(self) -> dict[str, Any]:
        """`state_dict` for `check_form`: sums of every rank, whatever their names."""
        return {"names": [], "sums": [[]] * self._processes.world_size, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        values = state["sums"][self._processes.rank]
        device = self._processes.device
        tensors = (torch.tensor(value, dtype=torch.float64, device=device) for value in values)
        self._sums = dict(zip(state["names"], tensors, strict=True))
        self._updates = dict(state["updates"])

    def _means(self, names: list[str], updates: int) -> dict[str, float]:
        sums = self._processes.sum(self._values(names)) / (self._processes.world_size * updates)
        return dict(zip(names, sums.tolist(), strict=True))

    def _values(self, names: list[str]) -> Tensor:
        if not names:
            return torch.zeros(0, dtype=torch.float64)
        return torch.stack([self._sums[name] for name in names]).cpu()


_STOPS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Signals that ask a program to stop: from users, from a closed terminal, from batch systems such as SLURM."""


class StopSignals:
    """Inside this context, `_STOPS` do not stop the program at once (only the second Ctrl-C); `received` records them.

    SIGHUP and those of batch systems stay ignored where they are, as SIGHUP is under nohup.

    Attributes:
        received: number of the signal; None if there was none.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._terminals = [number for number in (1, 2) if os.isatty(number)]

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _STOPS if hasattr(signal, name)):
                if signal.getsignal(number) != signal.SIG_IGN or number in (signal.SIGTERM, signal.SIGINT):
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        if number == getattr(signal, "SIGHUP", None):
            self._leave_terminals()
        logger.warning("%s: saving after this update, then stopping", signal.Signals(number).name)

    def _leave_terminals(self) -> None:
        """Writing to a closed terminal fails, and the run must still save."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in self._terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)


def batches_of_updates(
    loader: Iterable[dict[str, Tensor]], batches: LengthGroupedBatches, accumulation: int, updates_made: int
) -> Iterator[tuple[int, list[dict[str, Tensor]]]]:
    """Yield (epoch, micro-batches) for each update after `updates_made`, without end.

    The position in the data depends only on the number of updates: every epoch has the same number of them, and its
    last update takes the remaining batches.
    """
    per_epoch = -(-len(batches) // accumulation)
    epoch, done = divmod(updates_made, per_epoch)
    while True:
        batches.set_epoch(epoch, start_batch=done * accumulation)
        group: list[dict[str, Tensor]] = []
        left = len(batches) - done * accumulation
        for batch in loader:
            group.append(batch)
            left -= 1
            if len(group) == accumulation or left == 0:
                yield epoch, group
                group = []
        epoch, done = epoch + 1, 0
