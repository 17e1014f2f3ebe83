"""Training steps that distil: `TaskDistiller` fine-prunes a classifier, with a teacher or without."""

from __future__ import annotations

import argparse
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from emmental.patching import masked_layers, set_threshold
from emmental.pruning import global_boundary, refresh_masks, regularization
from emmental.training.distributed import Environment
from emmental.training.optimization import UpdateLoop, adamw, linear_schedule, parameter_groups
from emmental.training.plan import Plan
from emmental.training.precision import Precision

_NOISE_STRIDE = 1_000_003


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(softmax(t / T) || softmax(s / T)) * T^2 of each example, (B,), from logits (B, C).

    Hinton, Vinyals and Dean 2015 (arXiv 1503.02531); computed in float32.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


class TaskDistiller(UpdateLoop):
    """Fine-pruning of a classifier or regressor, one micro-batch at a time.

    Args:
        args: the trainer's flags.
        student: the model, masked or dense.
        plan: updates and thresholds of the run.
        environment: this process.
        teacher_logits: (N, C) float32, the teacher's logits of every training row; None without a teacher.

    Attributes:
        student: the model, not wrapped for distribution.
        losses: of the last micro-batch, name -> scalar tensor: ce (for regression: mean squared error), distil,
            regularization, and total, their weighted sum.
        boundary: of a global top-k, see `emmental.pruning.global_boundary`; None without one.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        student: nn.Module,
        plan: Plan,
        environment: Environment,
        teacher_logits: Tensor | None = None,
    ) -> None:
        groups = parameter_groups(student, args.learning_rate, args.weight_decay, args.mask_scores_learning_rate)
        optimizer = adamw(groups, args.adam_epsilon, use_apex=args.use_apex)
        super().__init__(
            _wrapped(student, environment),
            optimizer,
            linear_schedule(optimizer, plan.warmup_steps, plan.total_updates),
            Precision(environment.device, args.fp16, args.bf16, args.fp16_opt_level),
            args.max_grad_norm,
        )
        self.args = args
        self.student = student
        self.plan = plan
        self.teacher_logits = teacher_logits
        self.losses: dict[str, Tensor] = {}
        self.boundary: tuple[float, list[int]] | None = None
        self._masked = bool(masked_layers(student))

    def step(self, batch: dict[str, Tensor], threshold: float | None, regu_lambda: float) -> bool:
        """One micro-batch: masks (on the first of an update), forward, losses, `optimize`.

        Args:
            batch: input_ids, attention_mask, token_type_ids (B, T) int64; labels (B,) int64, or float32 for
                regression; index (B,) int64, the rows in the training set; weights (B,) float32, 0 for rows that
                only fill up the batch.
            threshold: of this update; None for a dense model.
            regu_lambda: weight of the regularization.

        Returns:
            True when the parameters were updated.

        Raises:
            NonFiniteError: see `optimize`.
        """
        if self._masked and self._seen == 0:
            self._make_masks(threshold)
        with self.micro_batch():
            with self.precision.autocast():
                logits = self.model(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    token_type_ids=batch["token_type_ids"],
                ).logits
            self.losses = self._losses(logits, batch, regu_lambda)
            return self.optimize(self.losses["total"])

    def keep_exact_masks(self) -> None:
        """After the last update: let a global top-k keep exactly its share of the final scores."""
        if self.args.global_topk and self._masked:
            self.boundary = global_boundary(self.student, self.plan.final_threshold)
            refresh_masks(self.student, self.plan.final_threshold, self.boundary)

    def state_dict(self) -> dict[str, Any]:
        """As `UpdateLoop.state_dict`, and the boundary of a global top-k."""
        return {**super().state_dict(), "boundary": self.boundary}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; the masks are again those of the last update."""
        super().load_state_dict(state)
        self.boundary = None if state["boundary"] is None else tuple(state["boundary"])
        if self._masked:
            set_threshold(self.student, self.plan.at(self.global_step)[0], self.boundary)

    def _make_masks(self, threshold: float) -> None:
        update = self.global_step + 1
        if self.args.global_topk and self._boundary_is_due(update):
            self.boundary = global_boundary(self.student, threshold)
        noise_seed = (self.args.seed * _NOISE_STRIDE + update) * _NOISE_STRIDE
        refresh_masks(self.student, threshold, self.boundary, noise_seed)

    def _boundary_is_due(self, update: int) -> bool:
        first_at_end = update == self.plan.total_updates - self.plan.constant_end + 1
        return first_at_end or (update - 1) % self.args.global_topk_frequency_compute == 0

    def _losses(self, logits: Tensor, batch: dict[str, Tensor], regu_lambda: float) -> dict[str, Tensor]:
        weights = batch["weights"]
        losses = {"ce": _weighted_mean(_task_loss(logits, batch["labels"]), weights)}
        total = losses["ce"]
        if self.teacher_logits is not None:
            teacher = self.teacher_logits[batch["index"]]
            losses["distil"] = _weighted_mean(self._distillation(logits, teacher), weights)
            total = self.args.alpha_ce * losses["ce"] + self.args.alpha_distil * losses["distil"]
        if self.args.regularization and self._masked:
            losses["regularization"] = regularization(self.student, self.args.regularization)
            total = total + regu_lambda * losses["regularization"]
        return {**losses, "total": total}

    def _distillation(self, logits: Tensor, teacher: Tensor) -> Tensor:
        if logits.shape[-1] == 1:
            return F.mse_loss(logits.float(), teacher.float(), reduction="none").squeeze(-1)
        return distillation_loss(logits, teacher, self.args.temperature)


def _wrapped(student: nn.Module, environment: Environment) -> nn.Module:
    if environment.world_size == 1:
        return student
    devices = [environment.device.index] if environment.device.type == "cuda" else None
    return DistributedDataParallel(
        student,
        device_ids=devices,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=False,
    )


def _task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of each example, (B,): cross entropy, or squared error for one output."""
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.float().squeeze(-1), labels.float(), reduction="none")
    return F.cross_entropy(logits.float(), labels, reduction="none")


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).mean()
