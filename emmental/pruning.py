"""How much to prune and when: the threshold's schedule, regularization, global top-k, and what remains.

Formulas: Sanh, Wolf and Rush 2020 (arXiv 2005.07683), after the cubic schedule of Zhu and Gupta 2017
(arXiv 1710.01878); the L0 penalty is Louizos, Welling and Kingma 2018 (arXiv 1712.01312).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from emmental.architectures import encoder_linears
from emmental.errors import UserError
from emmental.methods import REGULARIZATIONS
from emmental.modules.binarizer import L0_LEFT, L0_RIGHT, L0_TEMPERATURE, count_kept, kth_highest_of_all
from emmental.patching import masked_layers, set_threshold


def schedule_threshold(
    step: int,
    total_step: int,
    warmup_steps: int,
    initial_threshold: float,
    final_threshold: float,
    initial_warmup: int,
    final_warmup: int,
    final_lambda: float,
) -> tuple[float, float]:
    """Threshold, and weight of the regularization, at an update.

    Constant at the start for initial_warmup * warmup_steps updates, cubic from there, constant at the end for
    final_warmup * warmup_steps updates. Training counts updates from 1: the last is at `final_threshold` exactly.

    Args:
        step: number of the update.
        total_step: number of updates in all.
        warmup_steps: warm-up of the learning rate, in updates: the unit of the two phases below.
        initial_threshold: threshold of the first phase.
        final_threshold: threshold of the last phase.
        initial_warmup: length of the first phase, in units of `warmup_steps`.
        final_warmup: length of the last phase, in units of `warmup_steps`.
        final_lambda: weight of the regularization in the last phase.

    Returns:
        (threshold, regu_lambda); regu_lambda = final_lambda * threshold / final_threshold, or final_lambda throughout
        when final_threshold is 0.
    """
    start = initial_warmup * warmup_steps
    constant = (initial_warmup + final_warmup) * warmup_steps
    if step <= start:
        threshold = initial_threshold
    elif step > total_step - final_warmup * warmup_steps:
        threshold = final_threshold
    else:
        remaining = 1 - (step - start) / (total_step - constant)
        threshold = final_threshold + (initial_threshold - final_threshold) * remaining**3
    regu_lambda = final_lambda * threshold / final_threshold if final_threshold else final_lambda
    return threshold, regu_lambda


def regularization(model: nn.Module, mode: str) -> Tensor:
    """Penalty on the mask scores, a scalar averaged over the masked matrices.

    l1: mean sigmoid(S). l0: mean sigmoid(S - b log(-l / r)), the expected share of open hard concrete gates.

    Raises:
        UserError: unknown mode, or a model without mask scores (`magnitude`, or dense).
    """
    if mode not in REGULARIZATIONS:
        raise UserError(f"regularization must be one of {', '.join(REGULARIZATIONS)}, not {mode!r}")
    scores = _scores_of(model)
    shift = 0.0 if mode == "l1" else L0_TEMPERATURE * math.log(-L0_LEFT / L0_RIGHT)
    return torch.stack([torch.sigmoid(score - shift).mean() for score in scores]).mean()


@torch.no_grad()
def global_threshold(model: nn.Module, fraction: float) -> tuple[float, list[int]]:
    """One threshold for the scores of all matrices, so that floor(fraction * n) scores of all n are kept.

    Ties at the threshold go to the earlier matrix and, inside one, to the lower index.

    Returns:
        (score, ties): weights with a higher score stay, and in each matrix the first `ties[i]` that equal it. The
        score is always finite. For the fractions 0 and 1, none or all stay even if the scores change later.

    Raises:
        UserError: the model has no mask scores, or the fraction is outside [0, 1].
    """
    scores = [score.detach().reshape(-1) for score in _scores_of(model)]
    total = sum(score.numel() for score in scores)
    keep = count_kept(fraction, total)
    if keep in (0, total):
        limits = torch.finfo(scores[0].dtype)
        return (limits.max, [0] * len(scores)) if keep == 0 else (limits.min, [score.numel() for score in scores])
    return kth_highest_of_all(scores, keep)


@torch.no_grad()
def renew_masks(
    model: nn.Module,
    threshold: float | None,
    global_threshold: tuple[float, list[int]] | None = None,
    noise_seed: int | None = None,
) -> None:
    """Make the masks of one optimizer update. All its forward passes use them, also recomputed ones.

    Without it, every forward pass in training makes its own masks, with new noise for `l0`.

    Args:
        model: a model with masked layers.
        threshold, global_threshold: as for `set_threshold`.
        noise_seed: seed of the `l0` noise of this update; each layer draws from its own stream.
    """
    set_threshold(model, threshold, global_threshold)
    for index, layer in enumerate(masked_layers(model).values()):
        layer.noise_seed = None if noise_seed is None else noise_seed + index
        layer.renew_mask()


@torch.no_grad()
def mask_churn(model: nn.Module) -> float:
    """Share of mask entries (for `l0`: of open gates) that differ between the last used masks and new ones.

    Call it after an update and before the masks are used again: threshold and noise are then the same, so it measures
    what the update of the scores changed. In [0, 1]. The new masks are kept.
    """
    changed = total = 0
    for layer in masked_layers(model).values():
        before = layer.kept_mask
        layer.renew_mask()
        if before is not None:
            changed += int(((before > 0) != (layer.mask > 0)).sum())
        total += layer.weight.numel()
    return changed / total


def masks_of(model: nn.Module, zeros: bool = False) -> dict[str, Tensor]:
    """Dotted name -> bool mask (out_features, in_features) in use, for every masked layer; `l0`: gates above 0.

    With `zeros`, a model without masks gives the weights of its encoder's matrices that are not zero.
    """
    masks = {name: layer.mask > 0 for name, layer in masked_layers(model).items()}
    if zeros and not masks:
        return {name: model.get_submodule(name).weight.detach() != 0 for name in encoder_linears(model)}
    return masks


def densities(model: nn.Module) -> dict[str, float]:
    """Dotted name -> share of weights that remain, in [0, 1], of every masked layer."""
    return {
        name: int(torch.count_nonzero(layer.mask)) / layer.mask.numel() for name, layer in masked_layers(model).items()
    }


def remaining_weights(model: nn.Module) -> float:
    """Weights that remain in the masked layers, in % of all their weights; 100 for a dense model."""
    masks = [layer.mask for layer in masked_layers(model).values()]
    if not masks:
        return 100.0
    return 100.0 * sum(int(torch.count_nonzero(mask)) for mask in masks) / sum(mask.numel() for mask in masks)


@torch.no_grad()
def gather_information(model: nn.Module, update: int, loss_scale: float = 1.0) -> None:
    """Update the scores that a method gathers itself, from their gradients. The gradients are removed.

    Args:
        model: its masked layers hold the gradient of a whole update, averaged over all processes.
        update: number of the update, from 1.
        loss_scale: factor of the loss; entries that overflowed are left out.
    """
    for layer in masked_layers(model).values():
        if layer.method.gathers_scores and layer.mask_scores.grad is not None:
            layer.method.gather(layer.mask_scores, update, loss_scale)
            layer.mask_scores.grad = None


def freeze_scores(model: nn.Module) -> None:
    """Keep the mask scores, and so the masks at a fixed threshold, as they are while the weights train.

    Information gathered anew would open weights that a cut has set to zero in the place of those that an update
    happens not to use.
    """
    for scores in _scores_of(model):
        scores.requires_grad_(False)


def _scores_of(model: nn.Module) -> list[nn.Parameter]:
    scores = [layer.mask_scores for layer in masked_layers(model).values() if layer.mask_scores is not None]
    if not scores:
        raise UserError("the model has no mask scores: magnitude pruning and dense models learn none")
    return scores
