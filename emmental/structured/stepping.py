"""Runs an encoder one layer at a time, with the model's own code.

The layers below are skipped: each returns a state that was computed before. Everything else in the model (masks,
position biases, code between two layers) runs as always, so no architecture needs its own code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from emmental.architectures import architecture_of, encoder_layers
from emmental.task_heads import NOT_INPUTS


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside the block. Afterwards every module has its old mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def inputs_on_device(batch: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The inputs in a batch, without `NOT_INPUTS`, on the model's device."""
    device = next(model.parameters()).device
    return {name: each.to(device) for name, each in batch.items() if name not in NOT_INPUTS}


class _Reached(Exception):
    """Ends a forward pass whose result is already known."""


class LayerByLayer:
    """Runs single layers of a model on states that the caller holds.

    A forward pass uses `len(self)` layers, one after the other (ALBERT uses the same one many times).
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        """Find the order in which the first example of `inputs` runs through the layers."""
        self.model = model
        self._modules = [layer.module for layer in encoder_layers(model)]
        architecture = architecture_of(model.config)
        self.pre_norm = architecture.pre_norm
        self._norms = (architecture.attention_norm, architecture.feed_forward_norm)
        self._tuple_length: int | None = None
        self.order: list[int] = []
        """For each use the number of the distinct layer."""
        self._see_order({name: each[:1] for name, each in inputs.items()})

    def __len__(self) -> int:
        return len(self.order)

    def run(
        self,
        inputs: Mapping[str, Tensor],
        use: int,
        state: Tensor | None,
        seen: Sequence[nn.Module] = (),
        stop_at: nn.Module | None = None,
    ) -> tuple[Tensor | None, Tensor, list[Tensor]]:
        """One layer's forward pass.

        Args:
            inputs: of the model: `input_ids` (B, T), `attention_mask`, ...
            use: which layer of the forward pass, from 0.
            state: (B, T, H), output of the layer below; not read for layer 0, which follows the embeddings.
            seen: modules inside the layer whose inputs to return.
            stop_at: module inside the layer whose input ends the pass; it must be the last of `seen` to run.

        Returns:
            (output of the layer (B, T, H), or None after an early stop; its input; inputs of `seen`)
        """
        noted: dict[int, Tensor] = {}
        result: dict[str, Tensor] = {}

        def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            noted[id(module)] = arguments[0]
            if module is stop_at:
                raise _Reached

        def act(number: int, forward: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if number < use:
                return self._in_form(state)
            result["given"] = arguments[0] if arguments else named["hidden_states"]
            output = forward(*arguments, **named)
            result["output"] = output if self._tuple_length is None else output[0]
            raise _Reached

        handles = [module.register_forward_pre_hook(note) for module in seen]
        try:
            with self._layers_doing(act), torch.no_grad():
                self.model.base_model(**inputs)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return result.get("output"), result["given"], [noted[id(module)] for module in seen]

    def norms(self, use: int) -> tuple[nn.Module, nn.Module]:
        """LayerNorms of the attention and of the feed-forward of a layer."""
        layer = self._modules[self.order[use]]
        return layer.get_submodule(self._norms[0]), layer.get_submodule(self._norms[1])

    def _see_order(self, inputs: Mapping[str, Tensor]) -> None:
        def act(number: int, forward: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            self.order.append(next(index for index, each in enumerate(self._modules) if each is forward.__self__))
            output = forward(*arguments, **named)
            self._tuple_length = len(output) if isinstance(output, tuple) else None
            return output

        with self._layers_doing(act), torch.no_grad():
            self.model.base_model(**inputs)

    def _in_form(self, state: Tensor | None) -> Any:
        if self._tuple_length is None:
            return state
        return (state, *[None] * (self._tuple_length - 1))

    @contextmanager
    def _layers_doing(self, act: Callable[..., Any]) -> Iterator[None]:
        calls = itertools.count()

        def replaced(forward: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *arguments, **named: act(next(calls), forward, arguments, named)

        for module in self._modules:
            module.forward = replaced(module.forward)  # hides the class' method until it is deleted
        try:
            yield
        finally:
            for module in self._modules:
                del module.forward
