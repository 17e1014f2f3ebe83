"""What a training run carries from update to update beside model and optimizer."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from torch import Tensor

from emmental.data import LengthGroupedBatches

logger = logging.getLogger(__name__)


class LossAverages:
    """Means of the named losses over updates: since the last log entry, and of the total since the start.

    Sums stay on the device of the losses until they are read.
    """

    def __init__(self) -> None:
        self._recent: dict[str, Tensor | float] = {}
        self._recent_updates = 0
        self._total: Tensor | float = 0.0
        self._updates = 0

    def add(self, losses: dict[str, Tensor], micro_batches: int) -> None:
        """Take in the losses of one of an update's `micro_batches`."""
        for name, value in losses.items():
            self._recent[name] = self._recent.get(name, 0.0) + value.detach().double() / micro_batches
        self._total = self._total + losses["total"].detach().double() / micro_batches

    def update_done(self) -> None:
        """An update is complete."""
        self._recent_updates += 1
        self._updates += 1

    def take_recent(self) -> dict[str, float]:
        """Means since the last call."""
        means = {name: float(value) / self._recent_updates for name, value in self._recent.items()}
        self._recent, self._recent_updates = {}, 0
        return means

    @property
    def mean_total(self) -> float:
        """Mean of the total loss over all updates; 0 before the first."""
        return float(self._total) / self._updates if self._updates else 0.0

    def state_dict(self) -> dict[str, Any]:
        """As JSON can hold it, exactly."""
        recent = {name: float(value) for name, value in self._recent.items()}
        return {
            "recent": recent,
            "recent_updates": self._recent_updates,
            "total": float(self._total),
            "updates": self._updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._recent, self._recent_updates = dict(state["recent"]), state["recent_updates"]
        self._total, self._updates = state["total"], state["updates"]


class StopSignals:
    """Inside this context, SIGTERM and the first Ctrl-C are remembered instead of obeyed at once.

    Attributes:
        received: number of the signal; None before one came.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        logger.warning("%s: saving after this update, then stopping", signal.Signals(number).name)


def batches_of_updates(
    loader: Iterable[dict[str, Tensor]], batches: LengthGroupedBatches, accumulation: int, updates_made: int
) -> Iterator[tuple[int, list[dict[str, Tensor]]]]:
    """Yield (epoch, micro-batches) for each update after `updates_made`, without end.

    The position in the data follows from the number of updates alone: every epoch has the same number, and its last
    update takes the batches that are left.
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
