"""Masks and gates made on the device equal those made on a CPU: ties, bfloat16, NaN, all matrices together."""

from __future__ import annotations

import pytest
import tiny_masked
import tiny_models
import torch
from tiny_batches import batches

from emmental.modules.binarizer import hard_concrete_mask, magnitude_mask, threshold_mask, topk_mask
from emmental.patching import masked_layers
from emmental.pruning import global_threshold
from emmental.shrinking import layer_sizes, shrink
from emmental.structured.gates import all_open, gated, sublayers
from emmental.structured.selection import select, weight_prices

MASKS = {
    "topK": lambda scores: topk_mask(scores, 0.3),
    "magnitude": lambda scores: magnitude_mask(scores, 0.3),
    "threshold": lambda scores: threshold_mask(scores, 0.1, sigmoid=False),
    "threshold, all below": lambda scores: threshold_mask(scores, 9.0, sigmoid=False),
    "sigmoied_threshold": lambda scores: threshold_mask(scores, 0.6, sigmoid=True),
    "l0": lambda scores: hard_concrete_mask(scores, training=False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", MASKS)
def test_masks_with_many_ties(device, method, dtype):
    scores = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)).mul(4).round().div(4).to(dtype)
    on_cpu, on_device = MASKS[method](scores), MASKS[method](scores.to(device)).cpu()
    if method == "l0":
        torch.testing.assert_close(on_device, on_cpu)
    else:
        assert torch.equal(on_device, on_cpu)


@pytest.mark.gpu_only
def test_nan_keeps_nothing(device):
    scores = torch.zeros(8, 8, device=device)
    scores[3, 3] = torch.nan
    assert int(topk_mask(scores, 0.5).sum()) == 0


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.9])
def test_one_threshold_for_all_matrices(device, fraction):
    model = tiny_masked.make()
    for layer in masked_layers(model).values():
        layer.mask_scores.data = layer.mask_scores.data.round(decimals=1)
    expected = global_threshold(model, fraction)
    assert global_threshold(model.to(device), fraction) == expected


def test_gates_and_their_selection(device):
    model = tiny_models.model("bert").eval()
    batch = {name: value for name, value in batches("bert", count=1)[0].items() if name != "labels"}
    generator = torch.Generator().manual_seed(1)
    values = [torch.rand(gate.shape, generator=generator) for gate in all_open(model)]
    answers = []
    for where in (torch.device("cpu"), device):
        model.to(where)
        inputs = {name: value.to(where) for name, value in batch.items()}
        with torch.no_grad(), gated(model, [value.to(where) for value in values]):
            answers.append(model(**inputs).logits.cpu())
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-5)
    prices = weight_prices(sublayers(model))
    budget = 0.4 * float(sum(price[-1] for price in prices))
    chosen = [select([value.to(where) for value in values], prices, budget) for where in ("cpu", device)]
    assert all(torch.equal(a, b) for a, b in zip(*chosen, strict=True))


def test_a_small_model_gives_the_same_logits(device):
    dense = tiny_models.model("bert").eval()
    batch = {name: value for name, value in batches("bert", count=1)[0].items() if name != "labels"}
    small = shrink(dense, [([0], [0, 2, 3]) for _ in layer_sizes(dense)]).eval()
    with torch.no_grad():
        expected = small(**batch).logits
        found = small.to(device)(**{name: value.to(device) for name, value in batch.items()}).logits.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
