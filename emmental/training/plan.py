"""The plan of a run, made before training: how many updates, at which thresholds, and whether that can work."""

from __future__ import annotations

import math
from dataclasses import dataclass

from emmental.flags import Flags
from emmental.methods import method_of
from emmental.pruning import schedule_threshold
from emmental.runs.run import Run
from emmental.training.settings import TrainSettings

SHOWN_POINTS = 12


@dataclass(frozen=True)
class Plan:
    """The numbers that follow from the flags and the number of training examples.

    Attributes:
        batches_per_epoch: batches of one process in one pass over the data.
        accumulation: batches of one update; the last update of an epoch takes the remaining ones.
        updates_per_epoch: updates in one pass.
        total_updates: updates in all.
        warmup_steps: updates over which learning rates rise.
        prunes: whether the model is masked.
        method, initial_threshold, final_threshold, initial_warmup, final_warmup, final_lambda, global_topk: the flags.
    """

    batches_per_epoch: int
    accumulation: int
    updates_per_epoch: int
    total_updates: int
    warmup_steps: int
    prunes: bool
    method: str
    initial_threshold: float
    final_threshold: float
    initial_warmup: int
    final_warmup: int
    final_lambda: float
    global_topk: bool

    @property
    def constant_start(self) -> int:
        """Updates at the initial threshold."""
        return min(self.initial_warmup * self.warmup_steps, self.total_updates)

    @property
    def constant_end(self) -> int:
        """Updates at the final threshold, always including the last update."""
        return min(max(self.final_warmup * self.warmup_steps, 1), self.total_updates)

    def is_final(self, update: int) -> bool:
        """Whether the model after an update prunes as much as the last one does."""
        return not self.prunes or self.at(update) == self.at(self.total_updates)

    @property
    def pruning_updates(self) -> int:
        """Updates between these two phases, in which the threshold moves; negative if the phases overlap."""
        return self.total_updates - self.constant_start - self.constant_end

    def at(self, update: int) -> tuple[float | None, float]:
        """(threshold, regu_lambda) of an update from 1 to `total_updates`; the threshold is None for a dense model."""
        if not self.prunes:
            return None, 0.0
        return schedule_threshold(
            update,
            self.total_updates,
            self.warmup_steps,
            self.initial_threshold,
            self.final_threshold,
            self.initial_warmup,
            self.final_warmup,
            self.final_lambda,
        )

    def problem(self) -> str | None:
        """Why this plan cannot work, and the flags to change, in one line; None if it can."""
        if self.warmup_steps > self.total_updates:
            return (
                f"--warmup_steps {self.warmup_steps} is longer than the training of {self.total_updates} updates: "
                f"give --warmup_steps up to {self.total_updates // 10}, or more --num_train_epochs or --max_steps"
            )
        has_threshold = self.global_topk or method_of(self.method).has_threshold
        moves = self.prunes and has_threshold and self.initial_threshold != self.final_threshold
        if not moves or self.pruning_updates >= 1:
            return None
        return (
            f"the threshold has no update to move in: of {self.total_updates} updates the first {self.constant_start} "
            f"(--initial_warmup {self.initial_warmup} x --warmup_steps {self.warmup_steps}) and the last "
            f"{self.constant_end} (--final_warmup {self.final_warmup} x --warmup_steps {self.warmup_steps}) are "
            f"constant; give {self._shorter_warmup()}more --num_train_epochs or --max_steps"
        )

    def warning(self) -> str | None:
        """A warning about a result that the user may not expect, in one line; None if there is none."""
        by_scores = self.prunes and not method_of(self.method).by_share and not self.global_topk
        if not by_scores or self.final_lambda > 0:
            return None
        return (
            f"--pruning_method {self.method} without a penalty prunes only what training itself drives below the "
            "threshold, which may be nothing: give --keep, or --regularization and --final_lambda"
        )

    def _shorter_warmup(self) -> str:
        """The flag for a shorter warm-up, if that leaves the threshold an update to move in."""
        phases = self.initial_warmup + self.final_warmup
        end_without_warmup = 0 if self.final_warmup else 1
        if self.total_updates < 2 or not phases:
            return ""
        return f"--warmup_steps up to {(self.total_updates - 1 - end_without_warmup) // phases}, or "

    def lines(self) -> list[str]:
        """The plan as text: updates of each phase, and the threshold at a dozen points."""
        lines = [
            f"{self.total_updates} updates, {self.updates_per_epoch} an epoch "
            f"({self.batches_per_epoch} batches, {self.accumulation} an update); "
            f"learning rate rises for {self.warmup_steps} updates, then falls to 0"
        ]
        if not self.prunes:
            return [*lines, "dense training: nothing is pruned"]
        lines.append(
            f"phases: {self.constant_start} updates at the initial threshold {self.initial_threshold:g}, "
            f"{max(self.pruning_updates, 0)} pruning, "
            f"{self.constant_end} at the final threshold {self.final_threshold:g}"
        )
        lines.append(f"{'update':>10} {'threshold':>10} {'remaining':>10} {'lambda':>10}")
        for update in self.shown_updates():
            threshold, regu_lambda = self.at(update)
            lines.append(
                f"{update:>10} {threshold:>10.4f} {self._expected_remaining(threshold):>10} {regu_lambda:>10.4g}"
            )
        return lines

    def shown_updates(self) -> list[int]:
        """About a dozen updates over the run, including the first, the last, and the ends of the phases."""
        last = self.total_updates
        spread = {max(1, round(last * part / (SHOWN_POINTS - 3))) for part in range(SHOWN_POINTS - 2)}
        ends = {min(max(self.constant_start, 1), last), max(last - self.constant_end, 1)}
        return sorted(spread | ends)

    def _expected_remaining(self, threshold: float) -> str:
        if method_of(self.method).by_share or self.global_topk:
            return f"{100 * threshold:.1f} %"
        return "by scores"


def plan_updates(args: Run | Flags | TrainSettings, examples: int, world_size: int) -> Plan:
    """The plan of these flags for a number of training examples.

    Args:
        args: the trainer's flags, or the settings of one training.
        examples: rows of the training set, above 0.
        world_size: processes, each with its own batches.
    """
    batches = math.ceil(examples / (args.per_gpu_train_batch_size * world_size))
    per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
    total = args.max_steps if args.max_steps > 0 else max(1, math.ceil(round(args.num_train_epochs * per_epoch, 6)))
    return Plan(
        batches_per_epoch=batches,
        accumulation=args.gradient_accumulation_steps,
        updates_per_epoch=per_epoch,
        total_updates=total,
        warmup_steps=total // 10 if args.warmup_steps is None else args.warmup_steps,
        prunes=args.model_type.startswith("masked_"),
        method=args.pruning_method,
        initial_threshold=args.initial_threshold,
        final_threshold=args.final_threshold,
        initial_warmup=args.initial_warmup,
        final_warmup=args.final_warmup,
        final_lambda=args.final_lambda,
        global_topk=args.global_topk,
    )
