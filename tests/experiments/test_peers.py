"""The peers: weights read from an ONNX file, and the verdict on each."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn

from experiments.fetch import onnx_weights
from experiments.peers.verdict import beats, difference, verdicts


class Inner(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.auto_model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.auto_model(ids).last_hidden_state


class Whole(nn.Module):
    """Names as those of the package's file: model.0.auto_model."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(inner)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids)


def test_weights_of_an_onnx_file():
    """Every weight that the file has is the model's, matrices too, which lie transposed and nameless there."""
    pytest.importorskip("onnx")
    model = copy.deepcopy(tiny_models.model("bert").bert)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():  # the exporter writes equal ones once
        nn.init.normal_(weight, generator=generator)
    inputs, buffer = torch.tensor([[2, 5, 9]]), io.BytesIO()
    torch.onnx.export(Whole(Inner(model)), (inputs,), buffer, dynamo=False, opset_version=17)
    found, wanted = onnx_weights(buffer.getvalue(), "model.0.auto_model."), model.state_dict()
    assert {*wanted} - {*found} <= {name for name in wanted if "pooler" in name or "token_type" in name}
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_difference_is_paired():
    ours, peer = np.array([1, 1, 1, 0], bool), np.array([1, 0, 1, 0], bool)
    gain, error = difference(ours, peer)
    assert gain == 0.25
    assert error == pytest.approx(np.sqrt(0.1875) / 2)  # differences 0, 1, 0, 0 have variance 3 / 16


@pytest.mark.parametrize(
    ("gain", "times", "beaten"),
    [(0.021, 1.0, True), (0.02, 1.4, False), (-0.01, 1.5, True), (-0.011, 9.0, False), (0.5, 0.9, False)],
)
def test_beats(gain, times, beaten):
    """Better by more than two errors and as fast; or not worse by more than one and 1.5 times as fast."""
    assert beats(gain, 0.01, times) is beaten


def test_verdicts():
    """The fastest that beats a peer in its engine; a peer without times is beaten by being better."""
    peer, good = np.zeros(100, bool), np.ones(100, bool)
    rows = {
        "first-1": {"milliseconds": {"torch, 1 x 8": 4.0, "onnx, 1 x 8": 1.0}},
        "ours-0.4": {"milliseconds": {"torch, 1 x 8": 4.0, "onnx, 1 x 8": 2.0}},
        "cut-0.1": {"milliseconds": {"torch, 1 x 8": 2.0, "onnx, 1 x 8": 1.5}},
        "bag of words": {"milliseconds": {}},
    }
    right = {(name, engine): good for name in ("ours-0.4", "cut-0.1") for engine in ("torch", "onnx")}
    right |= {("first-1", "torch"): peer, ("first-1", "onnx"): peer, ("bag of words", "torch"): good}
    assert verdicts(rows, right, "1 x 8") == [
        "first-1, torch: cut-0.1 in torch, +100.0 points (standard error 0.0), 2.0 times as fast",
        "first-1, onnx: none",
        "first-1, best engine (onnx): none",
        "bag of words, torch: none",
        "bag of words, best engine (torch): none",
    ]
    rows["first-1"]["milliseconds"]["onnx, 1 x 8"] = 1.6
    assert verdicts(rows, right, "1 x 8")[2] == (
        "first-1, best engine (onnx): cut-0.1 in onnx, +100.0 points (standard error 0.0), 1.1 times as fast"
    )
