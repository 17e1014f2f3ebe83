r"""Training with distillation: `TaskDistiller` fine-prunes a classifier, `Distiller` makes a smaller language model.

python distiller.py --student_type distilbert --student_config distilbert.json --teacher_type bert \
    --teacher_name bert-base-uncased --mlm --data_file corpus --dump_path distilled
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

READS_FLAGS_FIRST = True  # `import emmental` reads this and does not load PyTorch before the flags are read

from emmental import is_program
from emmental.language_models.arguments import parse_arguments
from emmental.runs.threads import bound_spinning

if is_program(__name__):
    bound_spinning()
    parse_arguments()  # --help and mistakes in flags are answered before PyTorch is loaded, which takes seconds

import torch
from torch import Tensor, nn

from emmental.command_line import user_mistakes
from emmental.data import LengthGroupedBatches, batch_loader
from emmental.errors import UserError
from emmental.language_models.arguments import LOSSES, with_defaults
from emmental.language_models.corpus import CorpusDataset
from emmental.language_models.masking import LmBatchMaker, Masking
from emmental.language_models.models import load_lm_run
from emmental.modules.score_head import deviation_of
from emmental.patching import masked_layers, set_threshold
from emmental.pruning import gather_information, global_threshold, regularization, renew_masks
from emmental.reporting.summary import environment_line
from emmental.runs.evaluation import model_inputs
from emmental.runs.loop import Intervals, RunLoop
from emmental.runs.optimization import Learner, adamw, linear_schedule, parameter_groups
from emmental.runs.output_folder import OutputFolder
from emmental.runs.precision import Precision
from emmental.runs.processes import Processes, peak_memory, wrapped
from emmental.runs.resuming import open_output
from emmental.runs.run import DISTILLER_FLAGS, Run, set_up
from emmental.runs.state import LossAverages, seed_generators
from emmental.teaching.hidden_states import HiddenStateMatch, ProjectedStudent
from emmental.teaching.losses import (
    IGNORED,
    LmLossSum,
    LmOutputs,
    averaged,
    lm_loss_sums,
    loss_of,
    weighted_mean,
)
from emmental.training.plan import Plan

logger = logging.getLogger("distiller")

_NOISE_STRIDE = 1_000_003
_ADAM_BETAS = (0.9, 0.98)


class TaskDistiller(Learner):
    """Fine-pruning of a classifier (also of several labels) or regressor, one micro-batch at a time.

    Args:
        args: the run, with the trainer's flags.
        student: the model, masked or dense.
        plan: updates and thresholds of the run.
        teacher_logits: (N, C) float32, the teacher's logits of every training row; None without a teacher.
        hidden: how the student's hidden states are compared with the teacher's; None if they are not.

    Attributes:
        student, projection: the model, not wrapped for distribution; the projection of the hidden states, if any.
        losses: of the last micro-batch: ce (for scores: mean squared error of standard scores), distil,
            hidden_cos, hidden_mse, regularization, and total, their weighted sum.
        global_threshold: of a global top-k, see `emmental.pruning.global_threshold`; None without one.
    """

    def __init__(
        self,
        args: Run,
        student: nn.Module,
        plan: Plan,
        teacher_logits: Tensor | None = None,
        hidden: HiddenStateMatch | None = None,
    ) -> None:
        model = student if hidden is None else ProjectedStudent(student, hidden.projection)
        self._gathers_scores = any(layer.method.gathers_scores for layer in masked_layers(student).values())
        scores = [layer.mask_scores for layer in masked_layers(student).values()]
        self._scores_are_frozen = bool(scores) and not any(each is None or each.requires_grad for each in scores)
        scores_rate = None if self._gathers_scores else args.mask_scores_learning_rate
        groups = parameter_groups(model, args.learning_rate, args.weight_decay, scores_rate)
        optimizer = adamw(groups, args.adam_epsilon, use_apex=args.use_apex)
        super().__init__(
            wrapped(model, args.processes, args.torch_compile),
            optimizer,
            linear_schedule(optimizer, plan.warmup_steps, plan.total_updates),
            Precision(args.processes.device, args.fp16, args.bf16, args.fp16_opt_level),
            args.max_grad_norm,
            student,
            hidden.projection if hidden is not None and list(hidden.projection.parameters()) else None,
        )
        self.args = args
        self.plan = plan
        self.teacher_logits = teacher_logits
        self.hidden = hidden
        self.global_threshold: tuple[float, list[int]] | None = None
        self._masked = bool(masked_layers(student))
        self._loss = loss_of(student.config, deviation_of(student))

    def step(self, batch: dict[str, Tensor], threshold: float | None, regu_lambda: float) -> bool:
        """One micro-batch: masks (on the first of an update), forward, losses, `optimize`.

        Args:
            batch: on any device: input_ids, attention_mask, token_type_ids (B, T) int64; labels (B,) int64,
                (B,) float32 for regression, (B, L) float32 for several labels; index (B,) int64, the rows in the
                training set; weights (B,) float32, 0 for rows that only fill the batch.
            threshold: of this update; None for a dense model.
            regu_lambda: weight of the regularization.

        Returns:
            True when the parameters were updated.

        Raises:
            NonFiniteError: see `optimize`.
        """
        if self._masked and self.between_updates:
            self._make_masks(threshold)
        batch = {name: value.to(self.precision.device, non_blocking=True) for name, value in batch.items()}
        with self.micro_batch():
            with self.precision.autocast():
                outputs = self.model(**model_inputs(batch, self.precision.device, self.student))
            self.losses = self._losses(outputs, batch, regu_lambda)
            updated = self.optimize(self.losses["total"])
        if updated and self.global_step == self.plan.total_updates:
            self.keep_exact_masks()
        return updated

    def keep_exact_masks(self) -> None:
        """Recompute the global top-k mask from the final scores. Called once, after the last update."""
        if self.args.global_topk and self._masked:
            self.global_threshold = global_threshold(self.student, self.plan.final_threshold)
            noise_seed = self._noise_seed(self.global_step + 1)
            renew_masks(self.student, self.plan.final_threshold, self.global_threshold, noise_seed)

    def state_dict(self) -> dict[str, Any]:
        """`Learner.state_dict` and the threshold of a global top-k."""
        return {**super().state_dict(), "boundary": self.global_threshold}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned. The masks are again those of the last update."""
        super().load_state_dict(state)
        self.global_threshold = None if state["boundary"] is None else tuple(state["boundary"])
        if self._masked:
            set_threshold(self.student, self.plan.at(self.global_step)[0], self.global_threshold)

    def _update(self) -> None:
        loss_scale = self.precision.scaler.get_scale() if self._gathers_scores else 1.0
        super()._update()
        if self._gathers_scores:
            gather_information(self.student, self.global_step, loss_scale)

    def _make_masks(self, threshold: float) -> None:
        if self._scores_are_frozen and all(
            layer.kept_mask is not None for layer in masked_layers(self.student).values()
        ):
            return  # of scores that do not change; an evaluation drops them
        update = self.global_step + 1
        if self.args.global_topk and self._global_threshold_is_due(update):
            self.global_threshold = global_threshold(self.student, threshold)
        renew_masks(self.student, threshold, self.global_threshold, self._noise_seed(update))

    def _noise_seed(self, update: int) -> int:
        return (self.args.seed * _NOISE_STRIDE + update) * _NOISE_STRIDE

    def _global_threshold_is_due(self, update: int) -> bool:
        first_at_end = update == self.plan.total_updates - self.plan.constant_end + 1
        return first_at_end or (update - 1) % self.args.global_topk_frequency_compute == 0

    def _losses(self, outputs: Any, batch: dict[str, Tensor], regu_lambda: float) -> dict[str, Tensor]:
        logits, weights = outputs.logits, batch["weights"]
        losses = {"ce": weighted_mean(self._loss.of_labels(logits, batch["labels"]), weights)}
        total = losses["ce"]
        if self.teacher_logits is not None:
            teacher = self.teacher_logits[batch["index"]]
            losses["distil"] = weighted_mean(self._loss.of_teacher(logits, teacher, self.args.temperature), weights)
            total = self.args.alpha_ce * losses["ce"] + self.args.alpha_distil * losses["distil"]
        if self.hidden is not None:
            for name, values in self.hidden.losses(outputs.hidden_states, batch).items():
                losses[name] = weighted_mean(values, weights)
                total = total + getattr(self.args, f"alpha_{name}") * losses[name]
        if self.args.regularization and self._masked:
            losses["regularization"] = regularization(self.student, self.args.regularization)
            total = total + regu_lambda * losses["regularization"]
        return {**losses, "total": total}


class Distiller(Learner):
    """Distillation of a language model, as for DistilBERT (Sanh et al. 2019, arXiv 1910.01108).

    Args:
        params: a run; or the flags of `distiller.py` by name (missing ones have their defaults),
            special_tok_ids (name of a special token -> its id) and, if it is to be saved too, the tokenizer.
        dataset: a `CorpusDataset`, or any sequence of token ids (T,).
        token_probs: (V,) how likely each token is to be masked, up to a factor; None: all equally.
        student, teacher: language models. The teacher runs only if a loss needs it, and never changes.

    Attributes:
        losses: of the last micro-batch over all ranks, name -> scalar tensor; `total` is their weighted sum.
        epoch: completed passes over the data.
        total_updates: updates of the whole run. The last one of an epoch takes the remaining batches.
    """

    def __init__(
        self,
        params: Run | argparse.Namespace,
        dataset: CorpusDataset | Sequence[Any],
        token_probs: Tensor | None,
        student: nn.Module,
        teacher: nn.Module | None,
    ) -> None:
        self.params = params if isinstance(params, Run) else _run_of(params)
        self.processes = self.params.processes
        student = student.to(self.processes.device)
        self.teacher = None if teacher is None else teacher.to(self.processes.device).eval()
        self._prepare_data(dataset, token_probs, student.config.vocab_size)
        optimizer = adamw(
            parameter_groups(student, self.params.learning_rate, self.params.weight_decay),
            self.params.adam_epsilon,
            _ADAM_BETAS,
        )
        super().__init__(
            wrapped(student, self.processes),
            optimizer,
            linear_schedule(optimizer, int(self.params.warmup_prop * self.total_updates), self.total_updates),
            Precision(self.processes.device, self.params.fp16, self.params.bf16, self.params.fp16_opt_level),
            self.params.max_grad_norm,
            student,
        )
        self.begin_update(self.params.gradient_accumulation_steps)
        self._alphas = {name: alpha for name in LOSSES if (alpha := getattr(self.params, f"alpha_{name}")) > 0}
        intervals = Intervals(self.params.log_interval, self.params.checkpoint_interval, in_batches=True)
        self._loop = RunLoop(self.params, self, self._batches, self.total_updates, intervals, self.params.tokenizer)
        self.epoch = 0
        self._speed = {"since": time.monotonic(), "sequences": 0, "tokens": 0}

    @property
    def n_total_iter(self) -> int:
        """Micro-batches seen."""
        return self._loop.batches_made

    @property
    def averages(self) -> LossAverages:
        """Averages of the losses, over updates and ranks."""
        return self._loop.averages

    @property
    def last_loss(self) -> float:
        """The weighted sum of the losses of the last micro-batch; `last_loss_ce` and so on are its parts."""
        return self._last("total")

    last_loss_ce = property(lambda self: self._last("ce"))
    last_loss_mlm = property(lambda self: self._last("mlm"))
    last_loss_clm = property(lambda self: self._last("clm"))
    last_loss_mse = property(lambda self: self._last("mse"))
    last_loss_cos = property(lambda self: self._last("cos"))

    def prepare_batch_mlm(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Mask a batch: token ids (B, T) int64, padded on the right, and their lengths (B,) int64.

        Returns:
            Token ids with some masked, attention mask (bool), labels (-100 at positions without a loss); all (B, T').
        """
        return self._batch_maker.masked(*batch)

    def prepare_batch_clm(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """As `prepare_batch_mlm` for a causal language model: nothing is masked, the labels are the tokens."""
        return self._batch_maker.causal(*batch)

    def round_batch(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """In mixed precision, pad token ids (B, T) until T is a multiple of 8; no sequence is dropped."""
        return self._batch_maker.rounded(x), lengths

    def train(self) -> None:
        """Train for `n_epoch` epochs or `max_steps` updates, from the newest good checkpoint of `dump_path` on.

        Raises:
            NonFiniteError: a loss or gradient became NaN or infinite; that update is not saved.
            StoppedBySignal: a signal to stop came; the state is saved.
        """
        loop = self._loop
        loop.resume()
        self.student.train()
        with loop:
            for micro_batches in loop.updates(batch_loader(self.dataset, self._batches)):
                self.epoch = loop.epoch
                for batch in micro_batches:
                    self.step(*self._inputs(batch))
                    self.iter()
                if self.global_step % self._updates_per_epoch == 0:
                    self.end_epoch()

    def step(
        self, input_ids: Tensor, attention_mask: Tensor, lm_labels: Tensor, counted: Tensor | None = None
    ) -> bool:
        """One micro-batch: forward of student and teacher, losses, `optimize`.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) bool.
            lm_labels: (B, T) int64, -100 at positions without a loss.
            counted: (B,) bool, False for rows that only fill the batch; None: all count.

        Returns:
            True when the parameters were updated.

        Raises:
            NonFiniteError: see `optimize`.
        """
        attended = attention_mask.bool()
        with self.micro_batch():
            with self.precision.autocast():
                student = self._outputs(self.model, input_ids, attended)
                with torch.no_grad():
                    teacher = self._outputs(self.teacher, input_ids, attended) if self._needs_teacher else None
            if counted is not None:
                attended = attended & counted[:, None]
                lm_labels = lm_labels.masked_fill(~counted[:, None], IGNORED)
            restrict, temperature = self.params.restrict_ce_to_mask, self.params.temperature
            sums = lm_loss_sums(list(self._alphas), student, teacher, lm_labels, attended, restrict, temperature)
            return self.optimize(self._weighted(sums))

    def iter(self) -> None:
        """Count a micro-batch. After a whole update, log and save if due."""
        self._loop.count()
        if self._loop.log_is_due:
            self.log_tensorboard()
        if self._loop.save_is_due:
            self.save_checkpoint()

    def log_tensorboard(self) -> None:
        """Log mean losses since the last entry, learning rates and gradient norms; TensorBoard also gets the speed."""
        self._loop.log({"batches": self.n_total_iter})
        seconds = time.monotonic() - self._speed["since"]
        speed = {f"speed/{name}_per_second": self._speed[name] / seconds for name in ("sequences", "tokens")}
        self._speed = {"since": time.monotonic(), "sequences": 0, "tokens": 0}
        if self._loop.progress is not None:
            memory = {"memory/peak_gib": peak_memory(self.processes)}
            self._loop.progress.scalars(self.global_step, speed | memory)

    def end_epoch(self) -> None:
        """Count the epoch, and save a checkpoint."""
        self.epoch += 1
        epochs = math.ceil(self.total_updates / self._updates_per_epoch)
        logger.info("epoch %d of %d ends after %d updates", self.epoch, epochs, self.global_step)
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Write `checkpoint-<updates>` into `dump_path`, unless it exists or no folder was given."""
        self._loop.save()

    def _prepare_data(
        self, dataset: CorpusDataset | Sequence[Any], token_probs: Tensor | None, vocabulary: int
    ) -> None:
        params, special = self.params, self.params.special_tok_ids
        self.dataset = dataset if isinstance(dataset, CorpusDataset) else CorpusDataset.from_sequences(dataset)
        self.dataset.pad_token_id = special["pad_token" if params.mlm else "unk_token"]
        masking = None
        if params.mlm:
            probabilities = (
                torch.ones(vocabulary) if token_probs is None else torch.as_tensor(token_probs).float().clone()
            )
            probabilities[list(special.values())] = 0.0
            replacement = (params.word_mask, params.word_keep, params.word_rand)
            masking = Masking(probabilities.cpu(), params.mlm_mask_prop, replacement, special["mask_token"])
        multiple = 8 if params.fp16 or params.bf16 else 1
        self._batch_maker = LmBatchMaker(self.dataset.pad_token_id, multiple, masking, params.seed)
        batch_size = params.batch_size * self.processes.world_size
        lengths = self.dataset.lengths
        self._batches = LengthGroupedBatches(lengths, batch_size, seed=params.seed, grouped=params.group_by_size)
        self._updates_per_epoch = math.ceil(len(self._batches) / params.gradient_accumulation_steps)
        by_epochs = params.n_epoch * self._updates_per_epoch
        self.total_updates = params.max_steps if params.max_steps > 0 else by_epochs

    def _inputs(self, batch: dict[str, Tensor]) -> list[Tensor | None]:
        """The arguments of `step`: this rank's share of a batch, masked, on its device."""
        self._speed["sequences"] += len(batch["lengths"])
        self._speed["tokens"] += int(batch["lengths"].sum())
        share = self._batch_maker.share(batch, self.epoch, self.processes.rank, self.processes.world_size)
        return [None if value is None else value.to(self.processes.device) for value in share]

    @property
    def _needs_teacher(self) -> bool:
        return not {"ce", "mse", "cos"}.isdisjoint(self._alphas)

    def _outputs(self, model: nn.Module, input_ids: Tensor, attended: Tensor) -> LmOutputs:
        """A causal model needs no mask: padding is on the right, and no token attends to it."""
        inputs = {"attention_mask": attended} if self.params.mlm else {"use_cache": False}
        wants_hidden = "cos" in self._alphas
        outputs = model(input_ids=input_ids, output_hidden_states=wants_hidden, **inputs)
        return LmOutputs(outputs.logits, outputs.hidden_states[-1] if wants_hidden else None)

    def _weighted(self, sums: dict[str, LmLossSum]) -> Tensor:
        """Set `losses`, over all ranks, and return this rank's part of their weighted sum."""
        self.losses, scales = averaged(sums, self.processes)
        self.losses["total"] = sum(self._alphas[name] * value for name, value in self.losses.items())
        return sum(self._alphas[name] * sums[name].total * scales[name] for name in sums)

    def _last(self, name: str) -> float:
        return float(self.losses.get(name, 0.0))


def _run_of(params: argparse.Namespace) -> Run:
    """A run of a single process with the parameters as flags. If `dump_path` is None, nothing is written."""
    flags = with_defaults(params)
    on_gpu = bool(flags.n_gpu) and torch.cuda.is_available()
    run = Run(flags, DISTILLER_FLAGS, Processes(device=torch.device("cuda" if on_gpu else "cpu")))
    run.tokenizer, run.special_tok_ids = getattr(params, "tokenizer", None), params.special_tok_ids
    run.output = None if flags.dump_path is None else OutputFolder(flags.dump_path, "--dump_path")
    return run


def main(argv: Sequence[str] | None = None) -> None:
    """Distil with the flags of `argv` (default: the command line's)."""
    flags = parse_arguments(argv)
    remedies = "a lower --learning_rate, or --bf16 instead of --fp16"
    with user_mistakes(), set_up(flags, DISTILLER_FLAGS, flags.n_gpu == 0, remedies) as run:
        _run(run)


def _run(run: Run) -> None:
    """Check everything, open the folder, train, save the student."""
    logger.info("%s", environment_line(run.processes))
    if run.n_gpu and run.n_gpu > torch.cuda.device_count():
        raise UserError(f"--n_gpu accepts up to {torch.cuda.device_count()} here, not {run.n_gpu}")
    seed_generators(run.seed)
    corpus, probabilities, student, teacher = load_lm_run(run)
    open_output(run)
    seed_generators(run.seed + run.processes.rank)
    distiller = Distiller(run, corpus, probabilities, student, teacher)
    logger.info("%d sequences, %d updates", len(corpus), distiller.total_updates)
    distiller.train()
    logger.info("student: %s, mean loss %.4f", run.folder, distiller.averages.mean_total())
    if run.output is not None:
        run.output.save_model(student.eval(), run.tokenizer)


if __name__ == "__main__":
    main()
