"""The encoder of a pruned model for CPU inference: it computes only with non-zeros, and without padding.

The tokens that the attention mask keeps are packed, sequences of equal length side by side. Activations are
feature-major from the first layer to the last, in the blocks of `sparse_matrix.py`, so nothing is transposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from emmental.errors import UserError
from emmental.inference.layer_weights import LayerWeights
from emmental.inference.sparse_matrix import DENSE_ABOVE, block_shape, make_linear

_SCORES_AT_ONCE = 1 << 20
"""Attention scores, and probabilities, held at one time: 4 MB each, so they stay in the caches."""
TOKENS_AT_ONCE = 256
"""Tokens that go through a layer together, if no sequence is longer: their activations stay in the caches."""
_SHORT = 48
"""Sequences up to this length attend together if their lengths are equal; longer ones attend one by one."""


@dataclass(frozen=True)
class Packing:
    """Tokens that are computed together, and their places.

    Attributes:
        index: (tokens,) int64, places in the flattened (batch * length) input, in the order of the columns.
        groups: (sequences, length) of runs of columns: sequences of one length side by side, which attend together.
        blocks, width: number of blocks, and columns in each; columns after the last token are idle.
    """

    index: Tensor
    groups: tuple[tuple[int, int], ...]
    blocks: int
    width: int

    @property
    def columns(self) -> int:
        """Number of columns, including idle ones."""
        return self.blocks * self.width


def pack(mask: Tensor, tokens_at_once: int = TOKENS_AT_ONCE) -> list[Packing]:
    """Cut a batch into parts of whole sequences, the shortest first; an empty batch has no parts.

    Args:
        mask: (batch, length) bool, False at padding.
        tokens_at_once: most tokens of a part, unless a single sequence is longer.

    Raises:
        UserError: the first token of a sequence is padding, but BERT's classifiers read it.
    """
    if not bool(mask[:, :1].all()):
        raise UserError("attention_mask must keep the first token of every sequence: padding goes to the right")
    if not mask.numel():
        return []
    lengths, order = mask.sum(1).sort(stable=True)
    index = torch.arange(mask.numel()).view(mask.shape)[order][mask[order]]
    parts: list[list[int]] = [[]]
    for length in lengths.tolist():
        if parts[-1] and sum(parts[-1]) + length > tokens_at_once:
            parts.append([])
        parts[-1].append(length)
    sizes = [sum(part) for part in parts]
    return [
        Packing(places, tuple(_groups(part)), *block_shape(size))
        for places, part, size in zip(index.split(sizes), parts, sizes, strict=True)
    ]


def _groups(lengths: list[int]) -> Iterator[tuple[int, int]]:
    for length, run in groupby(lengths):
        count = len(list(run))
        yield from [(count, length)] if length <= _SHORT else [(1, length)] * count


class Workspace:
    """Memory that layers use one after another.

    New memory for each of them would take as long as their products: the system gives it page by page.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A float32 tensor of that shape with any content, valid until the name is used again."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = torch.empty(size)
        return self._buffers[name][:size].view(shape)


class SparseEncoder(nn.Module):
    """Replaces `BertEncoder` and similar ones; CPU, float32, inference only.

    Args:
        config: of the model.
        layers: weights of its layers.
        act: name of the activation of the neurons.
        eps: of the LayerNorms.
        dense_above: density above which a matrix is multiplied dense.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        layers: Iterable[LayerWeights],
        act: str,
        eps: float,
        dense_above: float = DENSE_ABOVE,
    ) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(SparseLayer(weights, act, eps, dense_above) for weights in layers)

    @torch.no_grad()
    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **options: object
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Hidden states (batch, length, hidden) -> those of the last layer; 0 at padding.

        Args:
            hidden_states: float32.
            attention_mask: (batch, length), 0 or False at padding; None if there is no padding.
            options: other arguments of Transformers; none of them changes what an encoder computes.

        Raises:
            UserError: as `pack`; a mask of another shape; attentions or hidden states of all layers are asked for.
        """
        for name in ("output_attentions", "output_hidden_states"):
            if options.get(name, getattr(self.config, name, False)):
                raise UserError(f"{name} is not for sparse models: they keep the last hidden states only")
        batch, length, hidden = hidden_states.shape
        if attention_mask is None:
            attention_mask = torch.ones(batch, length, dtype=torch.bool)
        if attention_mask.shape != (batch, length):
            raise UserError(f"attention_mask accepts (batch, length) in sparse models, not {attention_mask.dim()}-D")
        packings = pack(attention_mask.bool())
        tokens = hidden_states.reshape(-1, hidden)
        states = [_gather(tokens, packing) for packing in packings]
        # Layer by layer, so the weights of a layer stay in the caches while all parts pass through it.
        workspace = Workspace()
        for layer in self.layer:
            for state, packing in zip(states, packings, strict=True):
                layer(state, packing, workspace)
        result = torch.zeros_like(tokens)
        for state, packing in zip(states, packings, strict=True):
            result[packing.index] = state.transpose(1, 2).reshape(-1, hidden)[: len(packing.index)]
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=result.view(batch, length, hidden))


class SparseLayer(nn.Module):
    """Attention and feed-forward network of one layer, on packed columns."""

    def __init__(self, weights: LayerWeights, act: str, eps: float, dense_above: float) -> None:
        super().__init__()
        self.heads = weights.heads
        self.qkv = make_linear(weights.qkv, weights.qkv_bias, dense_above)
        self.output = make_linear(weights.output, weights.output_bias, dense_above)
        self.up = make_linear(weights.up, weights.up_bias, dense_above)
        self.down = make_linear(weights.down, weights.down_bias, dense_above)
        self.norm = ColumnNorm(*weights.norm, eps)
        self.last_norm = ColumnNorm(*weights.last_norm, eps)
        self.activate = _in_place(act)

    def forward(self, state: Tensor, packing: Packing, workspace: Workspace) -> Tensor:
        """(blocks, hidden, width) -> the same, changed in place."""
        context = self._attention(state, packing, workspace) if self.heads else state[:, :0]
        self.norm(self.output.add_to(context, state), workspace)
        neurons = self.up(state, workspace.take("neurons", packing.blocks, len(self.up.bias), packing.width))
        self.activate(neurons)
        return self.last_norm(self.down.add_to(neurons, state), workspace)

    def _attention(self, state: Tensor, packing: Packing, workspace: Workspace) -> Tensor:
        """Output of the heads, (blocks, heads * head size, width)."""
        qkv = workspace.take("qkv", len(self.qkv.bias), packing.columns)
        self.qkv(state, _as_blocks(qkv, packing))
        qkv = qkv.view(3, self.heads, -1, packing.columns)
        context = workspace.take("context", *qkv.shape[1:])
        begin = 0
        for sequences, length in packing.groups:
            end = begin + sequences * length
            attend(qkv[..., begin:end], context[..., begin:end], sequences, workspace)
            begin = end
        context[..., begin:] = 0
        blocks = workspace.take("blocks", packing.blocks, len(self.qkv.bias) // 3, packing.width)
        return blocks.copy_(_as_blocks(context.view(-1, packing.columns), packing))


def attend(qkv: Tensor, out: Tensor, sequences: int, workspace: Workspace) -> None:
    """Attention of sequences of one length, without a mask.

    Args:
        qkv: (3, heads, head size, sequences * length); q is already scaled.
        out: (heads, head size, sequences * length), written.
        sequences: their number.
        workspace: memory for intermediate results.
    """
    _, heads, size, columns = qkv.shape
    length = columns // sequences
    apart = qkv.view(3, heads, size, sequences, length).transpose(2, 3)
    query, key, value = apart.reshape(3, heads * sequences, size, length)  # a view if there is one sequence
    context = workspace.take("attended", heads * sequences, size, length)
    step = max(1, _SCORES_AT_ONCE // (length * length))
    for begin in range(0, heads * sequences, step):
        part = slice(begin, begin + step)
        shape = len(query[part]), length, length
        scores = torch.bmm(query[part].transpose(1, 2), key[part], out=workspace.take("scores", *shape))
        weights = torch.softmax(scores, -1, out=workspace.take("weights", *shape))
        torch.bmm(value[part], weights.transpose(1, 2), out=context[part])
    out.view(heads, size, sequences, length).copy_(context.view(heads, sequences, size, length).transpose(1, 2))


class ColumnNorm(nn.Module):
    """LayerNorm over the features of feature-major blocks, in place."""

    def __init__(self, weight: np.ndarray, bias: np.ndarray, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.from_numpy(weight)[:, None])
        self.register_buffer("bias", torch.from_numpy(bias)[:, None])
        self.register_buffer("average", torch.full((1, len(weight)), 1 / len(weight)))

    def forward(self, blocks: Tensor, workspace: Workspace) -> Tensor:
        """(blocks, features, width) -> the same tensor, each column normalised."""
        blocks -= torch.matmul(self.average, blocks)
        squares = torch.mul(blocks, blocks, out=workspace.take("squares", *blocks.shape))
        variance = torch.matmul(self.average, squares)
        blocks *= variance.add_(self.eps).rsqrt_()
        blocks *= self.weight
        blocks += self.bias
        return blocks


def _gather(tokens: Tensor, packing: Packing) -> Tensor:
    """Tokens (batch * length, hidden) -> blocks of columns, idle ones 0."""
    columns = torch.zeros(tokens.shape[1], packing.columns)
    columns[:, : len(packing.index)] = tokens[packing.index].T
    return _as_blocks(columns, packing).contiguous()


def _as_blocks(columns: Tensor, packing: Packing) -> Tensor:
    """(features, columns) -> a view of them, (blocks, features, width)."""
    return columns.view(-1, packing.blocks, packing.width).transpose(0, 1)


def _in_place(name: str) -> Callable[[Tensor], object]:
    """The activation of that name; it overwrites its input."""
    if name == "gelu":
        return torch.ops.aten.gelu_
    function = F.relu if name == "relu" else ACT2FN[name]
    return lambda values: values.copy_(function(values))
