"""The linear that gives a model's outputs."""

from __future__ import annotations

from torch import nn


def output_linear(model: nn.Module) -> nn.Linear | None:
    """The last linear outside of the base model; None if a model has none."""
    inside = set(model.base_model.modules())
    outside = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in inside]
    return outside[-1] if outside else None


def is_untrained(linear: nn.Linear | None) -> bool:
    """Whether its bias is exactly zero: every type starts it so, and the first update changes it."""
    return linear is not None and linear.bias is not None and not linear.bias.any()
