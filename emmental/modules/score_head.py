"""Trains a regression in standard scores, whatever the unit of its labels is.

During a training the last linear of the model learns standard scores, (label - mean) / deviation, which have the size
that learning rates are made for. What it returns, and what it saves, is in the unit of the labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emmental.modules.output_linear import output_linear


class ScoreHead(nn.Linear):
    """A linear with one output that is trained in standard scores: (..., in) -> (..., 1) float32, in the labels' unit.

    Its parameters are those of the standard scores. Its `state_dict` has those of a plain linear in the labels' unit,
    and `load_state_dict` takes such.

    Attributes:
        mean, deviation: of the labels.
    """

    def __init__(self, linear: nn.Linear, mean: float, deviation: float) -> None:
        """Takes over the parameters of `linear`. A new one, with a bias of exactly zero, begins at the mean."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.mean, self.deviation = mean, deviation
        if bool(self.bias.any()):
            with torch.no_grad():
                self.weight.copy_(self._standard("weight", self.weight))
                self.bias.copy_(self._standard("bias", self.bias))

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).float() * self.deviation + self.mean

    def plain(self) -> nn.Linear:
        """The linear that computes the same, with the same parameters."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        with torch.no_grad():
            self.weight.copy_(self._in_unit("weight", self.weight))
            self.bias.copy_(self._in_unit("bias", self.bias))
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

    def _in_unit(self, name: str, value: Tensor) -> Tensor:
        return (value.double() * self.deviation + (self.mean if name == "bias" else 0.0)).to(value.dtype)

    def _standard(self, name: str, value: Tensor) -> Tensor:
        return ((value.double() - (self.mean if name == "bias" else 0.0)) / self.deviation).to(value.dtype)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("weight", "bias"):
            destination[prefix + name] = self._in_unit(name, destination[prefix + name])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        standard = {
            key: self._standard(key.removeprefix(prefix), value) if key.startswith(prefix) else value
            for key, value in state_dict.items()
        }
        super()._load_from_state_dict(standard, prefix, *others)


def standardise_scores(model: nn.Module, labels: np.ndarray | None) -> None:
    """Let a regression learn standard scores of its training labels, until `restore_scores`. Others stay as they are.

    Args:
        model: one output is a regression. It keeps its parameters, and a fine-tuned one its answers, to rounding.
        labels: (N,) scores; NaN where they are unknown.
    """
    if model.config.num_labels != 1 or labels is None:
        return
    linear = output_linear(model)
    if linear is None or isinstance(linear, ScoreHead) or linear.bias is None:
        return
    name = next(name for name, module in model.named_modules() if module is linear)
    model.set_submodule(name, ScoreHead(linear, *mean_and_deviation(labels)))


def restore_scores(model: nn.Module) -> None:
    """Make the head of `standardise_scores` a plain linear again, which computes the same."""
    for name, head in list(model.named_modules()):
        if isinstance(head, ScoreHead):
            model.set_submodule(name, head.plain())


def mean_and_deviation(labels: np.ndarray) -> tuple[float, float]:
    """Of the known labels (N,), NaN where unknown; (0, 1) if none is known. The deviation of equal labels is 1."""
    known = np.asarray(labels, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return 0.0, 1.0
    mean, deviation = float(known.mean()), float(known.std())
    # Labels that differ by less than float32 can tell are equal.
    smallest = float(np.finfo(np.float32).eps) * abs(mean)
    return mean, deviation if deviation > smallest and math.isfinite(deviation) else 1.0


def deviation_of(model: nn.Module) -> float:
    """Deviation of the labels of a model that learns standard scores; 1 for every other model."""
    return next((head.deviation for head in model.modules() if isinstance(head, ScoreHead)), 1.0)


def standard_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter of a head in standard scores. The `state_dict` has it in another unit. Empty without one."""
    heads = [(name, head) for name, head in model.named_modules() if isinstance(head, ScoreHead)]
    return {f"{name}.{key}": value for name, head in heads for key, value in head.named_parameters()}
