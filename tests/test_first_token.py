"""The last layer computed for the first token alone: logits, gradients, torch.compile."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from tiny_small import UNEVEN, batch, dense, logits
from torch.nn import functional as F

from emmental.architectures import DOWN, encoder_layers
from emmental.first_token import all_tokens, first_token_only, is_installed
from emmental.shrinking import shrink


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_the_last_layer_for_one_token(model_type):
    model = dense(model_type)
    small = shrink(model, [([0, 2], [1, 5]), ([1], []), ([3, 1], [2, 3])])
    assert is_installed(small)
    seen = []
    linear = small.get_submodule(encoder_layers(small)[-1].linears[DOWN])
    linear.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    one = logits(small)
    with all_tokens(small):
        every = logits(small)
    assert seen == [(3, 1, 2), (3, 11, 2)]
    assert (one - every).abs().max() <= 1e-6
    outputs = small(**batch(small), output_hidden_states=True)
    assert outputs.hidden_states[-1].shape == (3, 11, 16)
    assert seen[-1] == (3, 11, 2)
    assert not is_installed(model)
    before = logits(model)
    with first_token_only(model) as possible:
        assert possible
        assert (logits(model) - before).abs().max() <= 1e-6
    assert not is_installed(model)


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_gradients_of_the_last_layer_for_one_token(model_type):
    small = shrink(dense(model_type), UNEVEN[::-1]).train()
    labels = torch.tensor([0, 1, 2])
    small(**batch(small), labels=labels).loss.backward()
    one = {name: parameter.grad for name, parameter in small.named_parameters()}
    small.zero_grad()
    with all_tokens(small):
        small(**batch(small), labels=labels).loss.backward()
    for name, parameter in small.named_parameters():
        if parameter.grad is None:
            assert one[name] is None, name
        else:
            assert (parameter.grad - one[name]).abs().max() <= 1e-6, name


@pytest.mark.parametrize("model_type", ["bert", "albert"])  # the two ways to the first token
def test_compiled_in_one_piece(model_type):
    small = shrink(dense(model_type), UNEVEN).train()
    graphs = []
    torch.compiler.reset()
    compiled = torch.compile(small, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
    assert (compiled(**batch(small)).logits - logits(small)).abs().max() <= 1e-6
    products = [node.meta["example_value"] for node in graphs[0].graph.nodes if node.target is F.linear]
    assert any(product.dim() == 3 and product.shape[1] == 1 for product in products)  # one token of the last layer


def test_who_reads_more_than_the_first_token_computes_all():
    assert not is_installed(shrink(dense("modernbert", classifier_pooling="mean"), UNEVEN))
    assert not is_installed(shrink(dense("bert", chunk_size_feed_forward=11), UNEVEN))
    with first_token_only(dense("modernbert", classifier_pooling="mean")) as possible:
        assert not possible
