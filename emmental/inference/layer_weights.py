"""One encoder layer in the form for inference: q, k and v as one matrix, without parts that compute constants.

If all value rows of a head are pruned, its output is always its value bias. If all its columns of the output matrix
are pruned, nothing reads it. In the same way, a neuron with a pruned row is constant, and nothing reads one with a
pruned column. All of these are removed, and the constants are added to the biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
from scipy.sparse import csr_array

from emmental.architectures import DOWN, KEY, OUTPUT, QUERY, UP, VALUE, Architecture

Activation = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class LayerWeights:
    """Weights of a layer; every array float32.

    Attributes:
        heads: attention heads that remain.
        qkv: (3 * heads * head size, hidden): the rows of q, divided by the root of the head size, then k, then v.
        qkv_bias: (3 * heads * head size,), in the same order; that of q is divided too.
        output: (hidden, heads * head size).
        output_bias: (hidden,).
        norm: weight and bias, (hidden,) each, of the LayerNorm after the attention.
        up: (neurons, hidden), the intermediate matrix.
        up_bias: (neurons,).
        down: (hidden, neurons).
        down_bias: (hidden,).
        last_norm: weight and bias of the LayerNorm at the end.
    """

    heads: int
    qkv: csr_array
    qkv_bias: np.ndarray
    output: csr_array
    output_bias: np.ndarray
    norm: tuple[np.ndarray, np.ndarray]
    up: csr_array
    up_bias: np.ndarray
    down: csr_array
    down_bias: np.ndarray
    last_norm: tuple[np.ndarray, np.ndarray]


def layer_weights(
    matrices: Mapping[str, csr_array],
    vectors: Mapping[str, np.ndarray],
    heads: int,
    activation: Activation,
    architecture: Architecture,
) -> LayerWeights:
    """The weights of a layer, constants removed.

    Args:
        matrices: name inside the layer, as `attention.self.query.weight`, -> matrix.
        vectors: name inside the layer -> bias or LayerNorm array.
        heads: number of attention heads.
        activation: of the intermediate neurons, elementwise.
        architecture: gives the name of each role.

    Raises:
        KeyError: an array is missing.
    """

    def matrix(role: str) -> csr_array:
        return matrices[f"{architecture.roles[role]}.weight"]

    def bias(role: str) -> np.ndarray:
        return vectors[f"{architecture.roles[role]}.bias"]

    def norm(name: str) -> tuple[np.ndarray, np.ndarray]:
        return vectors[f"{name}.weight"], vectors[f"{name}.bias"]

    scale = np.float32(1 / math.sqrt(matrix(QUERY).shape[0] // heads))
    scales = {QUERY: scale, KEY: np.float32(1), VALUE: np.float32(1)}
    whole = LayerWeights(
        heads=heads,
        qkv=_stack([matrix(role) * by for role, by in scales.items()]),
        qkv_bias=np.concatenate([bias(role) * by for role, by in scales.items()]),
        output=matrix(OUTPUT),
        output_bias=bias(OUTPUT),
        norm=norm(architecture.attention_norm),
        up=matrix(UP),
        up_bias=bias(UP),
        down=matrix(DOWN),
        down_bias=bias(DOWN),
        last_norm=norm(architecture.feed_forward_norm),
    )
    return _without_constant_neurons(_without_constant_heads(whole), activation)


def _without_constant_heads(layer: LayerWeights) -> LayerWeights:
    size = layer.output.shape[1] // layer.heads
    values = slice(2 * layer.heads * size, None)
    written = _stored_per_row(layer.qkv)[values].reshape(layer.heads, size).any(1)
    read = _stored_per_column(layer.output).reshape(layer.heads, size).any(1)
    constant = np.repeat(~written & read, size)
    kept = np.flatnonzero(np.repeat(written & read, size))
    rows = np.concatenate([kept, kept + layer.heads * size, kept + 2 * layer.heads * size])
    return replace(
        layer,
        heads=len(kept) // size,
        qkv=layer.qkv[rows],
        qkv_bias=layer.qkv_bias[rows],
        output=layer.output[:, kept],
        output_bias=layer.output_bias + layer.output @ np.where(constant, layer.qkv_bias[values], np.float32(0)),
    )


def _without_constant_neurons(layer: LayerWeights, activation: Activation) -> LayerWeights:
    written, read = _stored_per_row(layer.up) > 0, _stored_per_column(layer.down) > 0
    kept = np.flatnonzero(written & read)
    constants = np.where(written, np.float32(0), activation(layer.up_bias))
    return replace(
        layer,
        up=layer.up[kept],
        up_bias=layer.up_bias[kept],
        down=layer.down[:, kept],
        down_bias=layer.down_bias + layer.down @ constants,
    )


def _stack(matrices: list[csr_array]) -> csr_array:
    return scipy.sparse.vstack(matrices, format="csr", dtype=np.float32)


def _stored_per_row(matrix: csr_array) -> np.ndarray:
    return np.diff(matrix.indptr)


def _stored_per_column(matrix: csr_array) -> np.ndarray:
    return np.bincount(matrix.indices, minlength=matrix.shape[1])
