"""From a loss to updated parameters, for both trainers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from emmental.errors import NonFiniteError, UserError
from emmental.modules import devices
from emmental.runs.precision import Precision

_SMALLEST_LOSS_SCALE = 1e-3


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, mask_scores_learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """AdamW groups: mask scores at their own rate (None: untrained), weights with decay, biases and norms without.

    Each group has a `name`: "mask_scores", "weights" or "undecayed". Frozen parameters are left out.
    """
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    groups: dict[str, dict[str, Any]] = {
        "mask_scores": {"lr": mask_scores_learning_rate, "weight_decay": 0.0},
        "weights": {"lr": learning_rate, "weight_decay": weight_decay},
        "undecayed": {"lr": learning_rate, "weight_decay": 0.0},
    }
    for group in groups.values():
        group["params"] = []
    for name, parameter in model.named_parameters():
        kind = name.rpartition(".")[2]
        if not parameter.requires_grad or (kind == "mask_scores" and mask_scores_learning_rate is None):
            continue
        undecayed = kind == "bias" or id(parameter) in norms
        groups["mask_scores" if kind == "mask_scores" else "undecayed" if undecayed else "weights"]["params"].append(
            parameter
        )
    return [{"name": name, **group} for name, group in groups.items() if group["params"]]


def adamw(
    groups: Iterable[dict[str, Any]], epsilon: float, betas: tuple[float, float] = (0.9, 0.999), use_apex: bool = False
) -> torch.optim.Optimizer:
    """AdamW in PyTorch's fused form, or apex's."""
    if use_apex:
        from apex.optimizers import FusedAdam

        return FusedAdam(list(groups), eps=epsilon, betas=betas, adam_w_mode=True)
    return torch.optim.AdamW(list(groups), eps=epsilon, betas=betas, weight_decay=0.0, fused=True)


def linear_schedule(optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Learning rates rise from 0 for `warmup_steps` updates and fall to 0 at `total_steps`."""
    return get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps)


class Learner:
    """Turns the losses of micro-batches into parameter updates.

    The caller announces each group of micro-batches with `begin_update`, runs each forward pass inside `micro_batch`,
    and passes each loss to `optimize`.

    Args:
        model: the module whose outputs give the losses, wrapped for distribution or not.
        optimizer: over its parameters.
        scheduler: of the learning rates, stepped once an update.
        precision: autocast and loss scaling.
        max_grad_norm: gradients are scaled down to this norm; 0: no clipping.
        student: the model inside, which a checkpoint saves; None: `model` itself.
        projection: of the hidden states, which trains beside the student without being part of it.

    Attributes:
        losses: of the last micro-batch, name -> scalar tensor; `total` is their weighted sum.
        group_size: micro-batches of the current update.
        global_step: updates made.
        skipped_updates: updates left out because float16 gradients overflowed; `global_step` counts them.
        measuring: if True, the next update also computes what only the log needs (gradient norms).
        gradient_norms: parameter group -> norm before clipping, scalar tensors, of the last update measured.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LambdaLR,
        precision: Precision,
        max_grad_norm: float,
        student: nn.Module | None = None,
        projection: nn.Module | None = None,
    ) -> None:
        self.model = model
        self.student = model if student is None else student
        self.projection = projection
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.precision = precision
        self.max_grad_norm = max_grad_norm
        self.global_step = 0
        self.skipped_updates = 0
        self.measuring = False
        self.gradient_norms: dict[str, Tensor] = {}
        self.losses: dict[str, Tensor] = {}
        self.group_size = 1
        self._seen = 0
        self._first_bad: Tensor | None = None

    @property
    def between_updates(self) -> bool:
        """Whether the last update is complete."""
        return self._seen == 0

    def begin_update(self, micro_batches: int) -> None:
        """Announce that the next update takes this many micro-batches."""
        assert self.between_updates, "the previous update is not complete"
        self.group_size = micro_batches

    @contextmanager
    def micro_batch(self) -> Iterator[None]:
        """Wraps forward and `optimize` of a micro-batch. Ranks exchange gradients only in the last of an update."""
        last = self._seen + 1 == self.group_size
        distributed = isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if distributed and not last else nullcontext():
            yield

    def optimize(self, loss: Tensor) -> bool:
        """Process the loss of one micro-batch: a scalar, the mean over its examples.

        Finite check, backward, and in the last micro-batch of the update: clip, update, learning rates, zero.

        Returns:
            True when an update was made.

        Raises:
            NonFiniteError: the loss or, without float16, the gradient's norm is NaN or infinite. On a GPU the next
                `check_finite` raises it, so that no update waits for the GPU.
        """
        self._note(loss.detach(), "loss")
        self.precision.scaler.scale(loss / self.group_size).backward()
        self._seen += 1
        if self._seen < self.group_size:
            return False
        self._update()
        self._seen = 0
        return True

    def check_finite(self) -> None:
        """Raise `NonFiniteError` if a loss or gradient was ever not finite. Waits for the GPU."""
        if self._first_bad is not None and math.isfinite(step := float(self._first_bad)):
            raise NonFiniteError(f"loss or gradient of update {int(step)} is NaN or infinite")

    def learning_rates(self) -> dict[str, float]:
        """Parameter group -> learning rate of the next update."""
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    def state_dict(self) -> dict[str, Any]:
        """Counters, schedule and scaler as values of JSON. The optimizer's tensors are saved separately."""
        return {
            "global_step": self.global_step,
            "skipped_updates": self.skipped_updates,
            "scheduler": {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"},
            "scaler": self.precision.scaler.state_dict(),
        }

    def form_of_state(self) -> dict[str, Any]:
        """`state_dict` for `check_form`: what must be there when it is loaded. Of the schedule, that is the rates."""
        return {**self.state_dict(), "scheduler": {"_last_lr": self.scheduler.get_last_lr()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            UserError: a counter is not a number of updates.
        """
        for name in ("global_step", "skipped_updates"):
            if type(state[name]) is not int or state[name] < 0:
                raise UserError(f"{name} is {state[name]!r}, not a number of updates")
            setattr(self, name, state[name])
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **state["scheduler"]})
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        self.precision.scaler.load_state_dict(state["scaler"])

    def _update(self) -> None:
        scaler = self.precision.scaler
        scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
        if not scaler.is_enabled():
            self._note(norm, "gradient")
        if self.measuring:
            self.gradient_norms = self._norms_by_group()
        if self.max_grad_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_grad_norm, norm)
        self._step_scaled(scaler)
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.global_step += 1

    def _norms_by_group(self) -> dict[str, Tensor]:
        return {
            group["name"]: torch.nn.utils.get_total_norm(p.grad for p in group["params"] if p.grad is not None)
            for group in self.optimizer.param_groups
        }

    def _step_scaled(self, scaler: torch.amp.GradScaler) -> None:
        scaler.step(self.optimizer)
        if not scaler.is_enabled():
            return
        before = scaler.get_scale()
        scaler.update()
        if scaler.get_scale() < before:
            self.skipped_updates += 1
        if scaler.get_scale() < _SMALLEST_LOSS_SCALE:
            raise NonFiniteError(
                f"float16 gradients of update {self.global_step + 1} overflow at every loss scale; use --bf16"
            )

    def _note(self, value: Tensor, what: str) -> None:
        if devices.is_on_host(value):
            if not torch.isfinite(value):
                raise NonFiniteError(f"{what} of update {self.global_step + 1} is {float(value)}")
            return
        step = torch.full_like(value, self.global_step + 1, dtype=torch.float64)
        bad = torch.where(torch.isfinite(value), torch.full_like(step, math.inf), step)
        self._first_bad = bad if self._first_bad is None else torch.minimum(self._first_bad, bad)
