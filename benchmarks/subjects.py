"""The ways of training that are compared, each made by the trainer's own functions from the trainer's flags."""

from __future__ import annotations

import argparse
import math
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distiller import TaskDistiller
from emmental.data import LengthGroupedBatches
from emmental.modules import MaskedLinear
from emmental.modules.binarizer import count_kept
from emmental.patching import masked_layers, set_threshold
from emmental.pruning import freeze_scores
from emmental.runs import processes
from emmental.runs.loop import Intervals, RunLoop
from emmental.runs.output_folder import OutputFolder
from emmental.runs.run import Run
from emmental.tasks import resolve_task
from emmental.training.arguments import parse_arguments
from emmental.training.models import load_model, load_tokenizer
from emmental.training.plan import plan_updates
from masked_run_glue import load_and_cache_examples, set_seed

PHASES = ("masks", "forward", "backward", "update")
_UPDATES = 100_000
"""Length of the planned training. The measurement stops long before its end."""


@dataclass(frozen=True)
class Subject:
    """One way to train.

    Attributes:
        name: its name in the report.
        flags: of the trainer. `{density}` is replaced by the asked share of scores, `{tau}` by the score above which
            that share lies, and `{probability}` by the sigmoid of this score.
        teacher: it trains with logits of a teacher.
        frozen: embeddings are not trained (as in a masked model).
        held: the masks stay as they are, as after a cut of single weights.
        stock: linear layers use PyTorch's own products, even if others are faster here.
        reference: trains as the reference implementation does, see `ReferenceDistiller`.
        every: it takes part in one of this many rounds.
    """

    name: str
    flags: str
    teacher: bool = False
    frozen: bool = False
    held: bool = False
    stock: bool = False
    reference: bool = False
    every: int = 1


_SPREAD_SCORES = "--mask_init uniform --mask_scale 1"
_FRACTION = "--initial_threshold {density} --final_threshold {density}"
_FISHER = f"--pruning_method fisher --global_topk {_SPREAD_SCORES} {_FRACTION}"
_TOPK = f"--pruning_method topK {_SPREAD_SCORES} {_FRACTION}"
SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("dense", "--model_type bert"),
        Subject("dense, plain PyTorch", "--model_type bert", stock=True),
        Subject("dense, frozen embeddings", "--model_type bert", frozen=True),
        Subject("topK", _TOPK),
        Subject("topK + cached teacher", _TOPK, teacher=True),
        Subject("topK global", f"{_TOPK} --global_topk"),
        Subject(
            "threshold",
            f"--pruning_method threshold {_SPREAD_SCORES} --initial_threshold {{tau}} --final_threshold {{tau}} "
            "--regularization l1 --final_lambda 10",
        ),
        Subject(
            "sigmoied_threshold",
            f"--pruning_method sigmoied_threshold {_SPREAD_SCORES} --initial_threshold {{probability}} "
            "--final_threshold {probability} --regularization l1 --final_lambda 10",
        ),
        Subject("magnitude", f"--pruning_method magnitude {_FRACTION}"),
        Subject("fisher", _FISHER),
        Subject("fisher, after a cut", _FISHER, held=True),
        Subject("l0", f"--pruning_method l0 {_SPREAD_SCORES} --regularization l0 --final_lambda 10"),
        Subject("reference", _TOPK, reference=True, every=3),
    )
}
"""Scores are uniform in [-1, 1], so the threshold of any density is known."""


class PhaseTimes:
    """Seconds in each of `PHASES`, summed over updates; nothing is measured while `on` is False.

    A phase lasts from its `begin` to that of the next one. On a GPU it begins when the work before it is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.on = False
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.updates = 0
        self._device = device
        self._current: tuple[str, float] | None = None

    def begin(self, phase: str | None) -> None:
        """End the current phase and begin this one; None ends the update."""
        if not self.on:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._current is not None:
            self.seconds[self._current[0]] += now - self._current[1]
        self._current = None if phase is None else (phase, now)
        self.updates += phase is None

    def means(self) -> dict[str, float]:
        """Seconds of each phase in one update."""
        return {phase: seconds / max(self.updates, 1) for phase, seconds in self.seconds.items()}


class TimedDistiller(TaskDistiller):
    """A `TaskDistiller` that tells `phases` when each phase begins."""

    phases: PhaseTimes

    def step(self, batch: dict[str, Tensor], threshold: float | None, regu_lambda: float) -> bool:
        """As `TaskDistiller.step`."""
        self.phases.begin("forward")
        updated = super().step(batch, threshold, regu_lambda)
        self.phases.begin(None)
        return updated

    def optimize(self, loss: Tensor) -> bool:
        """As `TaskDistiller.optimize`."""
        self.phases.begin("backward")
        return super().optimize(loss)

    def _make_masks(self, threshold: float) -> None:
        self.phases.begin("masks")
        super()._make_masks(threshold)
        self.phases.begin("forward")

    def _update(self) -> None:
        self.phases.begin("update")
        super()._update()


class ReferenceDistiller(TimedDistiller):
    """Movement pruning with two properties of the reference implementation; everything else is this program's.

    Every batch is padded to the longest length allowed, and every forward sorts all scores of every matrix.
    """

    def step(self, batch: dict[str, Tensor], threshold: float | None, regu_lambda: float) -> bool:
        """As `TaskDistiller.step`, on a padded batch."""
        return super().step(padded(batch, self.args.max_seq_length), threshold, regu_lambda)

    def _make_masks(self, threshold: float) -> None:
        set_threshold(self.student, threshold)
        for layer in masked_layers(self.student).values():
            layer.forward = partial(sorting_forward, layer)


class _SortedTopK(torch.autograd.Function):
    """A top-k mask made by sorting; gradients pass straight through."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, scores: Tensor, threshold: float) -> Tensor:
        order = torch.sort(scores.reshape(-1), descending=True).indices
        mask = torch.zeros_like(scores)
        mask.view(-1)[order[: count_kept(threshold, scores.numel())]] = 1.0
        return mask

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def sorting_forward(layer: MaskedLinear, input: Tensor) -> Tensor:
    """The output of `layer`, with a new mask made by sorting."""
    return F.linear(input, layer.weight * _SortedTopK.apply(layer.mask_scores, layer.threshold), layer.bias)


def padded(batch: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """The batch with its (B, T) tensors padded with zeros to (B, length)."""
    return {
        name: F.pad(value, (0, length - value.shape[1])) if value.dim() == 2 else value
        for name, value in batch.items()
    }


@dataclass
class Entrant:
    """A subject ready to train.

    Attributes:
        loop: the trainer's own loop object; it logs to a file and TensorBoard, as in any run.
        seconds: time of each round's update; NaN in rounds without it.
        logging_seconds: time of each log entry.
    """

    subject: Subject
    loop: RunLoop
    seconds: list[float] = field(default_factory=list)
    logging_seconds: list[float] = field(default_factory=list)

    @property
    def phases(self) -> PhaseTimes:
        """Times of the phases of instrumented updates."""
        return self.loop.learner.phases

    @property
    def masked_weights(self) -> int:
        """Weights under a mask; 0 for a dense model."""
        return sum(layer.weight.numel() for layer in masked_layers(self.loop.learner.student).values())


def trainer_run(options: argparse.Namespace, subject: Subject, folder: Path) -> Run:
    """The trainer's run of a subject, its output below `folder`."""
    tau = 1 - 2 * options.density
    values = {"density": options.density, "tau": tau, "probability": 1 / (1 + math.exp(-tau))}
    flags = parse_arguments(
        [
            *("--data_dir", str(options.data_dir), "--task_name", options.task_name),
            *("--model_name_or_path", str(options.model), "--output_dir", str(folder / subject.name)),
            *("--max_seq_length", str(options.max_seq_length), "--max_steps", str(_UPDATES), "--warmup_steps", "1"),
            *("--per_gpu_train_batch_size", str(options.batch_size)),
            *("--per_gpu_eval_batch_size", str(options.batch_size)),
            *("--learning_rate", "3e-5", "--feature_cache_dir", str(folder / "features")),
            *subject.flags.format(**values).split(),
            *(f"--{flag}" for flag in ("fp16", "bf16") if getattr(options, flag)),
        ]
    )
    made = Run(flags, processes=processes.start(no_cuda=options.device == "cpu"))
    made.task, made.output = resolve_task(made.task_name), OutputFolder(made.folder)
    return made


def build(options: argparse.Namespace, subject: Subject, folder: Path) -> Entrant:
    """Load the model and set up its training, in `folder`."""
    args = trainer_run(options, subject, folder)
    tokenizer = load_tokenizer(args)
    dataset = load_and_cache_examples(args, args.task.name, tokenizer)
    set_seed(args)
    model = load_model(args, args.task, tokenizer).to(args.processes.device).train()
    if subject.frozen:
        freeze_embeddings(model)
    if subject.held:
        freeze_scores(model)
    plan = plan_updates(args, len(dataset), 1)
    logits = torch.randn(len(dataset), args.task.num_labels).to(args.processes.device) if subject.teacher else None
    distiller = (ReferenceDistiller if subject.reference else TimedDistiller)(args, model, plan, logits)
    if subject.stock and distiller.precision.dtype is None:
        distiller.precision.autocast = nullcontext
    distiller.phases = PhaseTimes(args.processes.device)
    batches = LengthGroupedBatches(dataset.lengths, args.per_gpu_train_batch_size, seed=args.seed)
    intervals = Intervals(args.logging_steps, _UPDATES)
    loop = RunLoop(args, distiller, batches, plan.total_updates, intervals, tokenizer)
    loop.carried["high_churn"] = 0
    return Entrant(subject, loop)


def freeze_embeddings(model: nn.Module) -> None:
    """Stop the training of a BERT's embeddings."""
    model.base_model.embeddings.requires_grad_(False)
