"""Replaces nn.Linear by MaskedLinear and back, in place, by a filter on names and modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from emmental.errors import UserError
from emmental.modules.masked_nn import MaskedLinear

LayerFilter = Callable[[str, nn.Module], bool]


def every_linear(name: str, module: nn.Module) -> bool:
    """The filter that matches every plain `nn.Linear`."""
    return True


def mask_linears(
    model: nn.Module,
    layer_filter: LayerFilter = every_linear,
    *,
    pruning_method: str = "topK",
    mask_init: str = "constant",
    mask_scale: float = 0.0,
) -> list[str]:
    """Replace in place each `nn.Linear` of `model` that `layer_filter(name, module)` matches by a `MaskedLinear`.

    Weights and biases stay the same parameter objects; mask scores are created beside them.

    Returns:
        The dotted names of the layers that were replaced.

    Raises:
        UserError: nothing matched, or `pruning_method` or `mask_init` is unknown.
    """
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear}
    chosen = [name for name, module in linears.items() if layer_filter(name, module)]
    if not chosen:
        raise UserError(f"no nn.Linear of {type(model).__name__} matched the filter, so there is nothing to mask")
    for name in chosen:
        linear = linears[name]
        with torch.device("meta"):
            masked = MaskedLinear(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                dtype=linear.weight.dtype,
                pruning_method=pruning_method,
                mask_init=mask_init,
                mask_scale=mask_scale,
            )
        masked.weight, masked.bias = linear.weight, linear.bias
        if masked.mask_scores is not None:
            masked.mask_scores = nn.Parameter(torch.empty_like(linear.weight))
            masked.reset_mask_scores()
        masked.train(linear.training)
        model.set_submodule(name, masked)
    return chosen


@torch.no_grad()
def unmask_linears(model: nn.Module, apply_masks: bool = True) -> list[str]:
    """Replace in place each `MaskedLinear` by an `nn.Linear`: the inverse of `mask_linears`.

    Args:
        model: a model with masked layers.
        apply_masks: multiply the weights by their masks of evaluation, so that the logits in evaluation stay the same.
            False leaves the weights as they are.

    Returns:
        The dotted names of the layers that were replaced.

    Raises:
        UserError: the model has no masked layer.
    """
    chosen = masked_layers(model)
    if not chosen:
        raise UserError(f"{type(model).__name__} has no masked layer")
    for name, masked in chosen.items():
        training = masked.training
        linear = nn.Linear(
            masked.in_features, masked.out_features, masked.bias is not None, device="meta", dtype=masked.weight.dtype
        )
        linear.weight, linear.bias = masked.weight, masked.bias
        if apply_masks:
            linear.weight = nn.Parameter(masked.eval().masked_weight(), requires_grad=masked.weight.requires_grad)
        linear.train(training)
        model.set_submodule(name, linear)
    return list(chosen)


def set_threshold(
    model: nn.Module, threshold: float | None, global_threshold: tuple[float, Sequence[int]] | None = None
) -> None:
    """Set the threshold of every masked layer, and record it in `model.config` if that has a place for it.

    Args:
        model: a model with masked layers.
        threshold: fraction of weights kept or score threshold, as the method says; None keeps all.
        global_threshold: of a global top-k, used instead of `threshold`: the score above which weights stay and, for
            each masked layer in order, how many scores equal to it stay too. `config.global_boundary` records it.

    Raises:
        UserError: `global_threshold` is for another number of layers.
    """
    layers = masked_layers(model).values()
    score, ties = (None, [None] * len(layers)) if global_threshold is None else global_threshold
    if len(ties) != len(layers):
        raise UserError(f"the global top-k is for {len(ties)} matrices; the model has {len(layers)}")
    for layer, kept in zip(layers, ties, strict=True):
        layer.threshold = threshold
        layer.global_threshold = None if score is None else (score, kept)
    config = getattr(model, "config", None)
    if hasattr(config, "global_boundary"):
        config.threshold = threshold
        config.global_boundary = None if score is None else [score, list(ties)]


def masked_layers(model: nn.Module) -> dict[str, MaskedLinear]:
    """Dotted name -> layer, for every `MaskedLinear` of `model` in its own order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MaskedLinear)}


def renew_masks(model: nn.Module) -> None:
    """Make the masks from the scores as they are now: once an update, and before a compiled model evaluates."""
    for layer in masked_layers(model).values():
        layer.renew_mask()


def drop_masks(model: nn.Module) -> None:
    """Drop the masks. Training then makes new ones in each forward pass; evaluation makes them once."""
    for layer in masked_layers(model).values():
        layer.drop_mask()
