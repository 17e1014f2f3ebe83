"""What goes from a layer because it computes a constant, checked by hand and against the layer as it was."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from emmental.architectures import ARCHITECTURES
from emmental.inference.layer_weights import layer_weights

HIDDEN, HEADS, NEURONS = 4, 2, 3
SHAPES = {
    "attention.self.query": (HIDDEN, HIDDEN),
    "attention.self.key": (HIDDEN, HIDDEN),
    "attention.self.value": (HIDDEN, HIDDEN),
    "attention.output.dense": (HIDDEN, HIDDEN),
    "intermediate.dense": (NEURONS, HIDDEN),
    "output.dense": (HIDDEN, NEURONS),
}


def make(change=lambda matrices: None):
    """A layer of ones with biases 1, 2, ...; `change(matrices)` prunes arrays in place."""
    matrices = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    change(matrices)
    vectors = {f"{name}.bias": np.arange(1, rows + 1, dtype=np.float32) for name, (rows, _) in SHAPES.items()}
    for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
        vectors |= {f"{norm}.weight": np.ones(HIDDEN, np.float32), f"{norm}.bias": np.zeros(HIDDEN, np.float32)}
    return layer_weights(
        {k: csr_array(v) for k, v in matrices.items()}, vectors, HEADS, lambda x: 10 * x, ARCHITECTURES["bert"]
    )


def test_nothing_pruned():
    layer = make()
    assert (layer.heads, layer.qkv.shape, layer.up.shape) == (2, (12, 4), (3, 4))
    root = np.float32(1 / np.sqrt(2))
    assert layer.qkv.toarray()[:4].ravel().tolist() == [root] * 16
    assert layer.qkv.toarray()[4:].ravel().tolist() == [1] * 32
    assert layer.qkv_bias.tolist() == [*(root * np.float32(n) for n in (1, 2, 3, 4)), 1, 2, 3, 4, 1, 2, 3, 4]
    assert layer.output_bias.tolist() == [1, 2, 3, 4]


def test_head_without_values_leaves_its_bias():
    def change(matrices):
        matrices["attention.self.value.weight"][2:] = 0

    layer = make(change)
    assert (layer.heads, layer.qkv.shape, layer.output.shape) == (1, (6, 4), (4, 2))
    assert layer.qkv_bias[2:].tolist() == [1, 2, 1, 2]
    assert layer.output_bias.tolist() == [1 + 7, 2 + 7, 3 + 7, 4 + 7]  # value biases 3 and 4, each times 1


def test_head_that_is_not_read():
    def change(matrices):
        matrices["attention.output.dense.weight"][:, :2] = 0

    layer = make(change)
    assert layer.heads == 1
    assert layer.qkv_bias[4:].tolist() == [3, 4]
    assert layer.output_bias.tolist() == [1, 2, 3, 4]


def test_half_a_head_stays():
    def change(matrices):
        matrices["attention.self.value.weight"][1] = 0
        matrices["attention.output.dense.weight"][:, 3] = 0

    assert make(change).heads == 2


def test_constant_and_unread_neurons():
    def change(matrices):
        matrices["intermediate.dense.weight"][1] = 0
        matrices["output.dense.weight"][:, 2] = 0

    layer = make(change)
    assert (layer.up.shape, layer.down.shape, layer.up_bias.tolist()) == ((1, 4), (4, 1), [1])
    assert layer.down_bias.tolist() == [1 + 20, 2 + 20, 3 + 20, 4 + 20]  # bias 2, activated: 20


@pytest.mark.parametrize("name", SHAPES)
def test_an_empty_matrix(name):
    layer = make(lambda matrices: matrices[f"{name}.weight"].fill(0))
    assert layer.heads == (0 if name in ("attention.self.value", "attention.output.dense") else 2)
    assert layer.up.shape[0] == (0 if name in ("intermediate.dense", "output.dense") else 3)


def test_missing_array():
    with pytest.raises(KeyError, match="query"):
        layer_weights({}, {}, 1, lambda x: x, ARCHITECTURES["bert"])
