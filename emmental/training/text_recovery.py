"""Recovery from texts alone: a small model learns what the dense model answers, without labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emmental.data import LengthGroupedBatches
from emmental.errors import UserError
from emmental.flags import Flag, Flags, flag, switch
from emmental.runs.loop import Intervals, RunLoop
from emmental.runs.optimization import Learner, adamw, linear_schedule, parameter_groups
from emmental.runs.output_folder import OutputFolder
from emmental.runs.precision import Precision, bf16_in_hardware
from emmental.runs.processes import Processes
from emmental.runs.resuming import checkpoint_to_resume
from emmental.runs.run import FolderFlags, Run
from emmental.runs.state import seed_generators
from emmental.structured.agreement import answers
from emmental.structured.stepping import inputs_on_device
from emmental.structured.texts import Material, padded_batches
from emmental.task_heads import TaskHead

logger = logging.getLogger(__name__)

BATCH = 32
_WARM_UP = 0.1
_RATES = ((512, 2e-4), (768, 1e-4))
"""Widest hidden size -> learning rate; wider encoders take `_RATE_OF_WIDE`."""
_RATE_OF_WIDE = 5e-5
NAMES = FolderFlags("recovery_dir", "overwrite_recovery")
FLAGS: tuple[Flag, ...] = (
    flag("updates", "updates in which the small model learns the dense model's answers to the texts", 0, at_least=0),
    flag("learning_rate", "of these updates; default: by the size of the encoder", type=float, above_zero=True),
    flag("batch_size", "texts of one update", BATCH, at_least=1),
    flag("seed", "order of the texts in these updates", 42, at_least=0),
)
_OF_THE_LOOP: tuple[Flag, ...] = (
    flag("recovery_dir", "folder of the checkpoints", changes_result=False),
    switch("overwrite_recovery", "start afresh", changes_result=False),
    switch("accept_changes", "resume with other flags", changes_result=False),
    flag("gradient_accumulation_steps", "batches of one update", 1),
    flag("save_total_limit", "checkpoints that stay", 1, changes_result=False),
    flag("cut", "the cut model's identity", ""),
)


class TextDistiller(Learner):
    """The updates of the recovery.

    Args:
        run: with `FLAGS`.
        student: the small model.
        head: what it answers, and the distance that is made small.
        teacher: the dense model's values for each text.
    """

    def __init__(self, run: Run, student: PreTrainedModel, head: TaskHead, teacher: Sequence[Tensor]) -> None:
        rate = run.learning_rate or learning_rate(student.config.hidden_size)
        optimizer = adamw(parameter_groups(student, rate, 0.0), 1e-8)
        device = run.processes.device
        precision = Precision(device, False, device.type == "cpu" and bf16_in_hardware(), "O1")
        schedule = linear_schedule(optimizer, int(_WARM_UP * run.updates), run.updates)
        super().__init__(student, optimizer, schedule, precision, 1.0)
        self.head, self.teacher = head, teacher

    def step(self, batch: Mapping[str, Tensor]) -> bool:
        """One batch: forward, distance, `optimize`. `rows` in the batch are the numbers of its texts."""
        rows = batch["rows"].tolist()
        batch = {name: value for name, value in batch.items() if name != "rows"}
        with self.micro_batch():
            with self.precision.autocast():
                outputs = self.model(**inputs_on_device(batch, self.student))
            wanted = torch.cat([self.teacher[row] for row in rows]).to(self.precision.device)
            loss = self.head.distance(self.head.values(outputs, batch), wanted, self.head.sizes(batch))
            self.losses = {"distil": loss, "total": loss}
            return self.optimize(loss)


def learning_rate(hidden: int) -> float:
    """The default for an encoder of this width."""
    return next((rate for widest, rate in _RATES if hidden <= widest), _RATE_OF_WIDE)


def recovery_run(folder: Path | None, cut: str = "", **values: Any) -> Run:
    """A run of the recovery alone.

    Args:
        folder: gets log and checkpoints, from which it resumes; None: nothing is written.
        cut: identity of what is trained.
        values: of `FLAGS`.
    """
    declared = {"": (*FLAGS, *_OF_THE_LOOP)}
    run = Run(Flags(declared, {**values, "cut": cut, "recovery_dir": folder and str(folder)}), NAMES, Processes())
    if folder is not None:
        run.output = OutputFolder(folder, "--output")
    return run


def recover(
    run: Run,
    dense: PreTrainedModel,
    small: PreTrainedModel,
    rows: Material,
    tokenizer: PreTrainedTokenizerBase,
    taught: Material | None = None,
) -> PreTrainedModel:
    """Train `small` in place for `run.updates` updates, and return it in evaluation mode.

    Args:
        rows: with the tokens of `small` and `tokenizer`.
        taught: the same texts with the tokens of `dense`, if those are others.

    Raises:
        UserError: the run's folder holds checkpoints of another run.
        NonFiniteError: a loss or gradient is NaN or infinite.
        StoppedBySignal: SIGTERM or Ctrl-C came; the state is saved.
    """
    head = rows.head
    if head is None:
        raise UserError("the texts were read without a task head")
    try:
        if run.folder is not None:
            checkpoint_to_resume(run)
        lengths = np.array([len(each["input_ids"]) for each in rows.encodings])
        batches = LengthGroupedBatches(lengths, run.batch_size, seed=run.seed)
        with torch.random.fork_rng(devices=()):
            seed_generators(run.seed)
            learner = TextDistiller(run, small, head, _answers(dense, taught or rows, head))
            _train(run, learner, batches, rows, tokenizer)
    finally:
        if run.output is not None:
            run.output.close()
    return small.eval()


def _train(
    run: Run, learner: TextDistiller, batches: LengthGroupedBatches, rows: Material, tokenizer: PreTrainedTokenizerBase
) -> None:
    loop = RunLoop(run, learner, batches, run.updates, Intervals(max(1, run.updates // 40), 100))
    loop.resume()
    learner.student.train()
    with loop:
        for micro_batches in loop.updates(_Loader(batches, rows, tokenizer)):
            for batch in micro_batches:
                learner.step(batch)
                loop.count()
            if loop.log_is_due:
                loop.log()
            if loop.save_is_due:
                loop.save()
    loop.require_finite()


class _Loader:
    """Padded batches in the order of `batches`."""

    def __init__(self, batches: LengthGroupedBatches, rows: Material, tokenizer: PreTrainedTokenizerBase) -> None:
        self._batches, self._rows, self._tokenizer = batches, rows, tokenizer

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for chosen in self._batches:
            numbers = chosen.indices.tolist()
            (batch,) = padded_batches(self._tokenizer, self._rows.encodings, numbers, len(numbers), range(10**9))
            yield {("rows" if name == "labels" else name): value for name, value in batch.items()}


def _answers(dense: PreTrainedModel, rows: Material, head: TaskHead) -> list[Tensor]:
    """The dense model's values for each text, in the order of the texts."""
    numbers = range(len(rows.encodings))
    batches = padded_batches(rows.tokenizer, rows.encodings, numbers, BATCH, numbers)
    found = answers(dense, batches, head).of_texts()
    order = torch.cat([batch["labels"] for batch in batches]).tolist()
    return [each for _, each in sorted(zip(order, found, strict=True), key=lambda pair: pair[0])]
