"""What both training loops do besides learning: resume, count, log and save when due, stop on a signal."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from emmental.data import LengthGroupedBatches
from emmental.errors import StoppedBySignal
from emmental.runs.checkpoints import (
    check_form,
    load_checkpoint,
    load_weights,
    newest_good_checkpoint,
    prune_checkpoints,
    require_finite,
    save_checkpoint,
)
from emmental.runs.optimization import Learner
from emmental.runs.progress import Progress, duration
from emmental.runs.run import Run
from emmental.runs.state import LossAverages, StopSignals, batches_of_updates

logger = logging.getLogger(__name__)

_UPDATES_TO_TIME = 20


@dataclass(frozen=True)
class Intervals:
    """How often a training logs and saves.

    Attributes:
        log: distance between two log entries.
        save: distance between two checkpoints.
        in_batches: these numbers count micro-batches; otherwise updates.
    """

    log: int
    save: int
    in_batches: bool = False


class RunLoop:
    """Everything around a training loop, which looks like this:

        loop.resume()
        with loop:
            for micro_batches in loop.updates(loader):
                for batch in micro_batches:
                    learner.step(...)
                    loop.count()
                if loop.log_is_due:
                    loop.log()
                if loop.save_is_due:
                    loop.save()

    Args:
        run: flags, processes and output folder; `run.folder` None: nothing is saved.
        learner: makes the updates.
        batches: of all processes or of this one, in the order of an epoch.
        total_updates: of the whole run.
        intervals: how often to log and save.
        tokenizer: saved beside the model; None saves none.

    Attributes:
        epoch: passes completed before the current update.
        batches_made: micro-batches counted so far.
        averages: of the losses.
        best: step and metric of the best checkpoint, which is kept; None before the first evaluation.
        carried: name -> JSON value that a resumed training gets back.
        progress: bar, log file and TensorBoard; None outside the loop.
        log_is_due, save_is_due: whether to log and save after this update. A stop makes saving due too.
        save_is_scheduled: saving is due by its interval or because the training ends.
        stopping: some process received a signal to stop.
    """

    def __init__(
        self,
        run: Run,
        learner: Learner,
        batches: LengthGroupedBatches,
        total_updates: int,
        intervals: Intervals,
        tokenizer: Any | None = None,
    ) -> None:
        self.run = run
        self.learner = learner
        self.batches = batches
        self.total_updates = total_updates
        self.intervals = intervals
        self.tokenizer = tokenizer
        self.accumulation: int = run.gradient_accumulation_steps
        self.epoch = self.batches_made = 0
        self.averages = LossAverages(run.processes)
        self.best: dict[str, Any] = {"step": None, "metric": None}
        self.carried: dict[str, Any] = {}
        self.progress: Progress | None = None
        self.log_is_due = self.save_is_due = self.save_is_scheduled = self.stopping = False
        self._signals: StopSignals | None = None
        self._counted = 0
        self._saved_step = -1
        self._opened = ExitStack()
        self._started, self._started_at = 0.0, 0

    def __enter__(self) -> RunLoop:
        progress = Progress(self.run.output, self.total_updates, self.learner.global_step)
        self.progress = self._opened.enter_context(progress)
        self._signals = self._opened.enter_context(StopSignals())
        self._started, self._started_at = time.monotonic(), self.learner.global_step
        return self

    def __exit__(self, *_: object) -> None:
        self.progress = self._signals = None
        self._opened.close()

    def resume(self) -> None:
        """Load the newest good checkpoint of the run's folder, if there is one."""
        found = None if self.run.folder is None else newest_good_checkpoint(self.run.folder)
        if found is None:
            return
        learner = self.learner
        state = load_checkpoint(found, learner.student, learner.optimizer, self.run.processes, learner.projection)
        own = {"updates": learner.form_of_state(), "averages": self.averages.form_of_state(), **self.carried}
        check_form(found, state, own)
        learner.load_state_dict(state["updates"])
        self.averages.load_state_dict(state["averages"])
        self.best = state.get("best", self.best)
        self.carried = {name: state[name] for name in self.carried}
        self.epoch, updates = divmod(learner.global_step, -(-len(self.batches) // self.accumulation))
        self.batches_made = self.epoch * len(self.batches) + updates * self.accumulation
        self._counted = self._count()
        self._saved_step = learner.global_step
        self._prune()
        logger.info("resuming after update %d of %d (%s)", learner.global_step, self.total_updates, found)

    def updates(self, loader: Iterable[dict[str, Tensor]]) -> Iterator[list[dict[str, Tensor]]]:
        """Yield the micro-batches of each remaining update.

        Raises:
            StoppedBySignal: a signal to stop came; the caller has saved.
        """
        learner = self.learner
        groups = batches_of_updates(loader, self.batches, self.accumulation, learner.global_step)
        while learner.global_step < self.total_updates:
            self.epoch, micro_batches = next(groups)
            after = self._counted + (len(micro_batches) if self.intervals.in_batches else 1)
            learner.measuring = self._is_due(self.intervals.log, after, learner.global_step + 1)
            learner.begin_update(len(micro_batches))
            yield micro_batches
            if self.stopping:
                logger.info("saved after update %d; run the same command again to resume", learner.global_step)
                raise StoppedBySignal(128 + (self._signals.received or 15))

    def count(self) -> None:
        """Count a micro-batch and its losses. After the last one of an update, find out what is due.

        Raises:
            NonFiniteError: something is due, and a loss or gradient was not finite.
        """
        learner = self.learner
        self.averages.add(learner.losses, learner.group_size)
        self.batches_made += 1
        self.log_is_due = self.save_is_due = self.save_is_scheduled = False
        if not learner.between_updates:
            return
        self.averages.update_done()
        if self.progress is not None:
            self.progress.advance()
            self._say_how_long()
            self.stopping = self.run.processes.any(self._signals.received is not None)
        self.log_is_due = self._is_due(self.intervals.log, self._count(), learner.global_step)
        self.save_is_scheduled = self._is_due(self.intervals.save, self._count(), learner.global_step)
        self.save_is_due = self.save_is_scheduled or self.stopping
        self._counted = self._count()
        if self.log_is_due or self.save_is_due:
            learner.check_finite()

    def _say_how_long(self) -> None:
        """After the first updates, log how long the rest of this training takes, and the rest of the command."""
        made = self.learner.global_step - self._started_at
        if made == _UPDATES_TO_TIME and self.learner.global_step < self.total_updates:
            others = self.total_updates - self.learner.global_step
            pace, after = (time.monotonic() - self._started) / made, self.run.work_after
            whole = f"; about {duration(pace * (others + after))} to the end of the whole run" if after else ""
            logger.info("about %s for the other %d updates at this pace%s", duration(pace * others), others, whole)

    def log(self, more: dict[str, Any] | None = None) -> None:
        """Log the mean losses since the last entry, `more`, learning rates and gradient norms."""
        learner = self.learner
        learner.check_finite()
        losses = self.averages.take_recent()
        if self.progress is None:
            return
        row = {"epoch": self.epoch, "loss": losses.pop("total"), "losses": losses, **(more or {})}
        row["rates"] = learner.learning_rates()
        row["gradient_norms"] = {name: float(norm) for name, norm in learner.gradient_norms.items()}
        row["skipped_updates"] = learner.skipped_updates
        self.progress.log(learner.global_step, row)

    def log_results(self, results: dict[str, float], metric: float, may_be_best: bool = True) -> None:
        """Log an evaluation during training, and note the best checkpoint among those that may be the best."""
        step = self.learner.global_step
        if self.progress is not None:
            self.progress.log(step, {"eval": results})
        if may_be_best and (self.best["metric"] is None or metric > self.best["metric"]):
            self.best = {"step": step, "metric": metric}

    def load_best(self) -> None:
        """Load the weights of the best checkpoint into the model."""
        step = self.best["step"]
        if step in (None, self.learner.global_step) or self.run.folder is None:
            return
        load_weights(self.run.folder / f"checkpoint-{step}", self.learner.student)
        logger.info("handing over checkpoint-%d, the best on the dev data (%.4f)", step, self.best["metric"])

    def require_finite(self) -> None:
        """Check that loss, gradients and parameters are finite.

        Raises:
            NonFiniteError: see `emmental.runs.checkpoints.require_finite`.
        """
        learner = self.learner
        require_finite(learner.global_step, learner.student, learner.optimizer, learner.projection)

    def save(self) -> None:
        """Write `checkpoint-<updates>` into the run's folder, unless this loop has written it. Delete older ones."""
        learner = self.learner
        if self.run.folder is None or self._saved_step == learner.global_step:
            return
        learner.check_finite()
        self._saved_step = learner.global_step
        state = {
            "updates": learner.state_dict(),
            "averages": self.averages.state_dict(),
            "best": self.best,
            **self.carried,
            "arguments": self.run.identity(),
        }
        save_checkpoint(
            self.run.folder,
            learner.global_step,
            learner.student,
            self.tokenizer,
            learner.optimizer,
            state,
            self.run.processes,
            learner.projection,
        )
        self._prune()

    def _prune(self) -> None:
        if self.run.processes.is_main:
            limit = self.run.save_total_limit
            prune_checkpoints(self.run.folder, limit, self.best["step"], self.learner.global_step)

    def _count(self) -> int:
        return self.batches_made if self.intervals.in_batches else self.learner.global_step

    def _is_due(self, interval: int, count: int, step: int) -> bool:
        return count // interval > self._counted // interval or step == self.total_updates
