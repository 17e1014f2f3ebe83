"""Gates of attention heads and feed-forward neurons, on any encoder that `emmental.architectures` knows.

The gate of head h multiplies head h's part of the input of the attention output. The gate of neuron n multiplies its
activation before the down projection. Hooks on these two linears do it, so no model code changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emmental.architectures import DOWN, HEAD_ROLES, OUTPUT, UP, encoder_layers
from emmental.shrinking import layer_sizes

HEADS, NEURONS = "heads", "neurons"


@dataclass(frozen=True)
class Sublayer:
    """The gates of one sublayer: the attention or the feed-forward of an encoder layer.

    Attributes:
        layer: number of the layer, from 0 at the bottom. Layers that share their weights have one number.
        kind: `HEADS` or `NEURONS`.
        linear: dotted name of the linear whose input the gates multiply.
        count: number of gates.
        width: columns of the linear that belong to one gate.
        cost: weights that go with one gate: rows of query, key, value (and position projections) and columns of the
            attention output, or rows of up (and its gate) and columns of down. Biases do not count.
    """

    layer: int
    kind: str
    linear: str
    count: int
    width: int
    cost: int


def sublayers(model: nn.Module) -> list[Sublayer]:
    """Attention and feed-forward of every layer, from the bottom to the top; sublayers without a gate are left out.

    Raises:
        UnknownArchitectureError: the type of the encoder is not known.
    """
    found = []
    for index, (layer, size) in enumerate(zip(encoder_layers(model), layer_sizes(model), strict=True)):
        modules = {role: model.get_submodule(name) for role, name in layer.linears.items()}
        for kind, end, rows, count in (
            (HEADS, OUTPUT, HEAD_ROLES, size.heads),
            (NEURONS, DOWN, (UP,), size.neurons),
        ):
            if count:
                weights = sum(modules[role].weight.numel() for role in (*rows, end) if role in modules)
                width = modules[end].in_features // count
                found.append(Sublayer(index, kind, layer.linears[end], count, width, weights // count))
    return found


def encoder_weights(model: nn.Module) -> int:
    """Number of weights in the encoder's matrices. Each belongs to some gate."""
    return sum(part.count * part.cost for part in sublayers(model))


@contextmanager
def gated(model: nn.Module, gates: Sequence[Tensor]) -> Iterator[None]:
    """Multiply heads and neurons by their gates inside the block.

    Args:
        gates: for each of `sublayers(model)` a tensor of shape (count,) for all examples, or (B, count) with a row for
            each example of the batch. Gradients flow into them; values may change inside the block.
    """
    parts = sublayers(model)
    handles = []
    try:
        for part, gate in zip(parts, gates, strict=True):
            hook = _GateHook(gate, part.width)
            handles.append(model.get_submodule(part.linear).register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


class _GateHook:
    def __init__(self, gate: Tensor, width: int) -> None:
        self._gate, self._width = gate, width

    def __call__(self, linear: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        factors = self._gate.repeat_interleave(self._width, -1).to(inputs[0].dtype)
        if factors.dim() == 2:
            factors = factors[:, None]  # (B, 1, columns): the same for all tokens of an example
        return (inputs[0] * factors, *inputs[1:])


def all_open(model: nn.Module, examples: int | None = None) -> list[Tensor]:
    """Gates of 1 for `gated`: float32, of shape (count,), or (examples, count) on the model's device."""
    device = next(model.parameters()).device
    shape = () if examples is None else (examples,)
    return [torch.ones(*shape, part.count, device=device) for part in sublayers(model)]


def openings(model: nn.Module, gates: Sequence[Tensor]) -> list[tuple[list[int], list[int]]]:
    """Gates in the form of `emmental.shrinking.shrink`: for each layer the numbers of its open heads and neurons.

    Args:
        gates: bool (count,) for each of `sublayers(model)`.
    """
    found: list[tuple[list[int], list[int]]] = [([], []) for _ in encoder_layers(model)]
    for part, gate in zip(sublayers(model), gates, strict=True):
        found[part.layer][part.kind == NEURONS].extend(gate.nonzero().flatten().tolist())
    return found
