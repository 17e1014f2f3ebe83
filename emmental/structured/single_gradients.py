"""Gradients of single examples with respect to the encoder's matrices, as the factors of their products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from emmental.architectures import encoder_linears
from emmental.modules.weight_information import UsesOfMatrices
from emmental.structured.stepping import evaluating, inputs_on_device
from emmental.task_heads import TaskHead, task_head


def uses_of_matrices(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], head: TaskHead | None = None
) -> Iterator[UsesOfMatrices]:
    """For each batch, and each scalar to differentiate: (name, B) -> the uses of that matrix with B examples.

    The gradient of an example is the sum over uses of gradient^T input. The scalars are those of `fisher_information`.
    What all examples share, such as DeBERTa's projections of positions, counts as one more example: B is 1. Dropout
    is off.
    """
    names, head = list(encoder_linears(model)), head or task_head(model)
    with evaluating(model):
        for batch in batches:
            inputs = inputs_on_device(batch, model)
            with torch.enable_grad(), _seen(model, names) as seen:
                scalars = list(head.derivatives(head.values(model(**inputs), batch), batch))
            outputs = [output for _, _, output in seen]
            for number, height in enumerate(scalars, 1):
                gradients = torch.autograd.grad(height, outputs, retain_graph=number < len(scalars))
                yield _by_size(seen, gradients)


@contextmanager
def _seen(model: nn.Module, names: list[str]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    """The (name, input, output) of each use of a linear inside the block, in order."""
    seen: list[tuple[str, Tensor, Tensor]] = []

    def note(name: str, _: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad:  # parameters may be frozen
            output.requires_grad_()
        seen.append((name, given[0].detach(), output))

    handles = [model.get_submodule(name).register_forward_hook(partial(note, name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _by_size(seen: list[tuple[str, Tensor, Tensor]], gradients: Iterable[Tensor]) -> UsesOfMatrices:
    found: UsesOfMatrices = {}
    for (name, given, _), gradient in zip(seen, gradients, strict=True):
        found.setdefault((name, len(given)), []).append((given.float(), gradient.float()))
    return found
