"""Prunes a model of any task head on texts: checks the arguments, and chooses between more and fewer rungs."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from emmental.errors import UserError
from emmental.modules.binarizer import count_kept
from emmental.modules.output_linear import is_untrained
from emmental.pretrained import require_encoder, require_finite_weights
from emmental.shrinking import require_plain_linears
from emmental.structured.gates import encoder_weights
from emmental.structured.rungs import Pruned, prune_carefully, prune_in_rungs
from emmental.structured.selection import Budget, weight_budget
from emmental.structured.speed import measure_speed, speed_budget, tuned_price
from emmental.structured.texts import Material, check_rows
from emmental.task_heads import Scores, SeveralLabels, TaskHead, task_head
from emmental.tasks.classes import classes_of_model
from emmental.tasks.task import listed


def prune_on(model: PreTrainedModel, rows: Material, budget: Budget, refit: bool = True) -> Pruned:
    """The small model for a budget, in evaluation mode; `model` and the random state stay as they are."""
    with torch.random.fork_rng(devices=()), torch.enable_grad():
        in_rungs = partial(prune_in_rungs, model, rows, budget, refitted=refit)
        found = prune_carefully(in_rungs) if refit else in_rungs()
    return replace(found, model=found.model.eval())


def share_budget(model: PreTrainedModel, keep: float, called: str = "keep") -> Budget:
    """The budget for a share of the encoder's weights.

    Raises:
        UserError: no share above 0 and up to 1, or one below a weight.
    """
    if not 0.0 < keep <= 1.0:
        raise UserError(f"{called} accepts a share of weights above 0 and up to 1, not {keep}")
    if count_kept(keep, whole := encoder_weights(model)) < 1:
        raise UserError(f"{called} {keep:g} is less than one of the {whole:,} encoder weights")
    return weight_budget(model, keep)


def time_budget(model: PreTrainedModel, speedup: float, length: int, called: str = "speedup") -> Budget:
    """The budget for a speed in PyTorch on this machine, for one text of `length` tokens."""
    budget = speed_budget(measure_speed(model, length=length), model, speedup, called)
    return replace(budget, tune=partial(tuned_price, budget, model, speedup, shape=(1, length)))


_INSIDE = {"merge_and_unload": ".merge_and_unload()", "_orig_mod": "._orig_mod", "module": ".module"}
"""Attributes of what PEFT, torch.compile and wrappers for several processes make of a model; the way back to it."""


def trained_head(model: PreTrainedModel, called: str = "model", **options: Any) -> TaskHead:
    """The task head of a model that can be pruned.

    Args:
        called: the model's name for messages.
        options: see `emmental.task_heads.task_head`.

    Raises:
        UserError: the model is a decoder or an encoder-decoder, holds adapters, is in float16, returns tuples, or has
            a head that was never trained or is not known.
    """
    if not isinstance(model, PreTrainedModel):
        inside = next((f"; give {called}{end}" for name, end in _INSIDE.items() if hasattr(model, name)), "")
        raise UserError(f"{called} accepts a model of Transformers, not a {type(model).__name__}{inside}")
    require_encoder(model.config, called)
    require_plain_linears(model)
    require_finite_weights(model, called)
    if torch.is_inference_mode_enabled() or any(each.is_inference() for each in model.parameters()):
        raise UserError(f"{called} needs gradients: load it, and call prune, outside torch.inference_mode()")
    if any(each.dtype == torch.float16 for each in model.parameters()):
        raise UserError(f"{called} is in float16, too coarse for the gradients that choose what is cut: call .float()")
    if not model.config.return_dict:
        raise UserError(f"{called} returns tuples: set return_dict=True in its config")
    head = task_head(model, called, **options)
    if is_untrained(head.last_linear(model)):
        raise UserError(f"{called} has a head that was never trained: fine-tune it first")
    return head


def known_labels(head: TaskHead, model: nn.Module, labels: Iterable[Any]) -> Iterator[int | float | list[float]]:
    """Labels as numbers: class ids, from ids or names; scores; or for several labels 0 and 1 for each.

    Raises:
        UserError: a label is none of the model's, or such models are pruned without labels.
    """
    if not head.takes_labels:
        raise UserError(f"labels: {head.title} are pruned without labels; omit them")
    check_rows("labels", labels)
    names = head.names if isinstance(head, SeveralLabels) else classes_of_model(model.config, "model")
    for row, label in enumerate(labels):
        if isinstance(head, SeveralLabels):
            if isinstance(label, str) or not isinstance(label, Iterable):
                raise UserError(f"labels: label {row} is {label!r:.60}; a list of ids or names is accepted")
            ids = {_class_id(names, row, one) for one in label}
            yield [float(index in ids) for index in range(len(names))]
        elif isinstance(head, Scores):
            if not isinstance(label, numbers.Real | Tensor) or not math.isfinite(label):
                raise UserError(f"labels: score {row} is {label!r}; a finite number is accepted")
            yield float(label)
        else:
            yield _class_id(names, row, label)


def _class_id(names: tuple[str, ...], row: int, label: Any) -> int:
    if isinstance(label, str) and label in names:
        return names.index(label)
    try:
        number = operator.index(label)
    except TypeError:
        number = -1
    if not 0 <= number < len(names):
        raise UserError(
            f"labels: label {row} is {label!r}; a number from 0 to {len(names) - 1}, or a name, is accepted: "
            f"{listed(names)}"
        )
    return number
