"""Constants move into biases, and what pruning has emptied is cut out: every type, the same logits."""

from __future__ import annotations

import copy

import pytest
import tiny_models
import torch
from tiny_small import HEADS, dense, logits
from torch import nn

from emmental.architectures import DOWN, OUTPUT, QKV, UP, VALUE, encoder_layers
from emmental.shrinking import fold_constants, layer_sizes, shrink


def emptied(model: nn.Module) -> nn.Module:
    """A copy with rows and columns of zeros.

    Layer 0: head 1 has no values, head 2 is not read, neuron 4 has no input, neuron 7 is not read. Layer 1: no values
    and no inputs at all. Layer 2: nothing is read.
    """
    model = copy.deepcopy(model)
    layers = [
        {role: model.get_submodule(name) for role, name in layer.linears.items()} for layer in encoder_layers(model)
    ]
    hidden = model.config.hidden_size
    size = hidden // HEADS
    with torch.no_grad():
        for index, heads, neurons in ((0, [1], [4]), (1, range(HEADS), range(12))):
            value = layers[index].get(VALUE) or layers[index][QKV]
            for head in heads:
                first = value.out_features - hidden + head * size
                value.weight[first : first + size] = 0
            for neuron in neurons:
                layers[index][UP].weight[neuron::12] = 0  # a gated one has its gate 12 rows below
        layers[0][OUTPUT].weight[:, 2 * size : 3 * size] = 0
        layers[0][DOWN].weight[:, 7] = 0
        layers[2][OUTPUT].weight[:] = 0
        layers[2][DOWN].weight[:] = 0
    return model


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_what_is_empty_is_cut_and_constants_stay(model_type):
    model = emptied(dense(model_type))
    before = logits(model)
    openings = fold_constants(folded := copy.deepcopy(model))
    assert openings == [([0, 3], [neuron for neuron in range(12) if neuron not in (4, 7)]), ([], []), ([], [])]
    small = shrink(folded, openings)
    assert (logits(small) - before).abs().max() <= 1e-5
    if model_type != "modernbert":  # it has no biases, so what is empty gives nothing
        assert (logits(shrink(model, openings)) - before).abs().max() > 1e-4
    assert [(size.heads, size.neurons) for size in layer_sizes(small)] == [(2, 10), (0, 0), (0, 0)]


def test_gated_neurons_with_biases():
    model = dense("modernbert", mlp_bias=True, attention_bias=True)
    up = model.model.layers[0].mlp.Wi
    with torch.no_grad():
        up.weight[0] = up.weight[12] = 0  # constant: input and gate are
        up.weight[1] = 0  # not constant: its gate is not
        up.weight[2] = up.bias[2] = 0  # constant: gelu(0) is 0
        up.weight[12 + 3] = up.bias[12 + 3] = 0  # constant: the gate is 0
        up.weight[12 + 4] = 0  # not constant
    before = logits(model)
    openings = fold_constants(model)
    assert openings[0] == ([0, 1, 2, 3], [1, *range(4, 12)])
    assert (logits(shrink(model, openings)) - before).abs().max() <= 1e-5


def test_a_small_model_is_folded_again():
    model = emptied(dense("bert"))
    before = logits(model)
    small = shrink(model, fold_constants(model))
    again = shrink(small, fold_constants(small))
    assert layer_sizes(again) == layer_sizes(small)
    assert (logits(again) - before).abs().max() <= 1e-5
