"""Fisher information of gates: how much the model's answers depend on a head or neuron."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from emmental.modules.weight_information import Reduce
from emmental.structured.gates import all_open, gated
from emmental.structured.stepping import evaluating, inputs_on_device

MOST_PASSES = 8
"""Most backward passes for one batch without labels: exact up to nine classes, and nearly so for more."""


def fisher_information(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], reduce: Reduce | None = None
) -> list[Tensor]:
    """Sum over examples of the squared gradient with respect to the gates of that example.

    With `labels` in a batch, it is the gradient of the example's loss. Without labels, it is the expectation over the
    model's own distribution: the sum over classes of p_c (d log p_c / dz)^2. A regression model (one output) takes the
    squared gradient of its output. Dropout is off. (Kwon et al. 2022, arXiv 2204.09656, section 3.2: the diagonal of
    the empirical Fisher information; here of single examples, and of any distribution.)

    Args:
        model: gives `logits` of shape (B, C); it is left as it was.
        batches: inputs of the model, with `labels` (B,) or without.
        reduce: sums a float64 tensor over all processes and returns it; each process then has its own batches.

    Returns:
        For each of `sublayers(model)` a float64 tensor (count,).
    """
    total: list[Tensor] | None = None
    with evaluating(model):
        for batch in batches:
            inputs, labels = inputs_on_device(batch, model), batch.get("labels")
            gates = [gate.requires_grad_() for gate in all_open(model, len(inputs["input_ids"]))]
            total = total or [torch.zeros(gate.shape[1], dtype=torch.float64, device=gate.device) for gate in gates]
            with torch.enable_grad(), gated(model, gates):
                heights = list(derivatives(model(**inputs).logits.float(), labels))
            for number, height in enumerate(heights, 1):
                gradients = torch.autograd.grad(height, gates, retain_graph=number < len(heights))
                for each, gradient in zip(total, gradients, strict=True):
                    each += gradient.double().square().sum(0)
    assert total is not None, "no batches"
    if reduce is None:
        return total
    summed = reduce(torch.cat(total))
    return list(summed.split([len(each) for each in total]))


def derivatives(logits: Tensor, labels: Tensor | None) -> Iterator[Tensor]:
    """The scalars to differentiate, summed over examples: their squared gradients add up to the information."""
    if logits.shape[1] == 1:
        yield logits.sum()
    elif labels is not None:
        yield functional.cross_entropy(logits, labels.to(logits.device), reduction="sum")
    else:
        factors = _fisher_factors(logits.detach())
        for index in range(factors.shape[2]):
            yield (factors[:, :, index] * logits).sum()


def _fisher_factors(logits: Tensor) -> Tensor:
    """(B, C, K) float: diag(p) - p p^T = F F^T for each example, as K = C - 1 orthogonal columns (the largest ones).

    The expectation of (d log p_c / dz)^2 over the classes c is J^T (diag(p) - p p^T) J, with J the gradient of the
    logits: K backward passes are enough; one for each class would be C.
    """
    shares = torch.softmax(logits.double(), 1)
    if shares.shape[1] == 2:
        half = shares.prod(1).sqrt()
        return torch.stack((half, -half), 1)[:, :, None].to(logits.dtype)
    values, vectors = torch.linalg.eigh(torch.diag_embed(shares) - shares[:, :, None] * shares[:, None])
    most = min(shares.shape[1] - 1, MOST_PASSES)
    factors = vectors[:, :, -most:] * values[:, None, -most:].clamp_min(0).sqrt()
    return factors.to(logits.dtype)
