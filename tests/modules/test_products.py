"""Products of a linear layer: the same numbers from either library, and the choice between them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from emmental.modules import products

ONEDNN = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch was built without oneDNN"
)


@pytest.fixture(params=[False, pytest.param(True, marks=ONEDNN)], ids=["MKL", "oneDNN"])
def library(request, monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: request.param)
    return request.param


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("rows", [(1,), (7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear(library, rows, has_bias):
    x, weight, bias = random(*rows, 96), random(64, 96), random(64) if has_bias else None
    output = products.linear(x, weight, bias)
    assert output.shape == (*rows, 64)
    assert output.is_contiguous()
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert torch.allclose(output.double(), expected, atol=1e-4)


def test_gradients(library):
    x, weight, gradient = random(11, 96), random(64, 96), random(11, 64)
    assert torch.allclose(products.input_gradient(gradient, weight), gradient @ weight, atol=1e-4)
    assert torch.allclose(products.weight_gradient(gradient, x), gradient.T @ x, atol=1e-4)


def test_strides_do_not_matter(library):
    x, weight = random(96, 10).t(), random(96, 64).t()
    assert torch.allclose(products.linear(x, weight), x @ weight.t(), atol=1e-4)


def test_the_same_bits_every_time(library):
    x, weight, bias = random(50, 128), random(256, 128), random(256)
    first = products.linear(x, weight, bias)
    assert all(torch.equal(products.linear(x.clone(), weight.clone(), bias), first) for _ in range(5))


def test_other_dtypes_and_empty_batches(library):
    x, weight = random(3, 96, dtype=torch.float64), random(64, 96, dtype=torch.float64)
    assert torch.equal(products.linear(x, weight), F.linear(x, weight))
    assert products.linear(torch.empty(0, 96), random(64, 96)).shape == (0, 64)


@ONEDNN
@pytest.mark.parametrize(
    ("capability", "maker", "expected"),
    [("AVX512", "AuthenticAMD", True), ("AVX512", "GenuineIntel", False), ("AVX2", "AuthenticAMD", False)],
)
def test_the_choice(monkeypatch, capability, maker, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(Path, "read_text", lambda *args, **options: f"vendor_id\t: {maker}\n")
    assert products.onednn_is_faster.__wrapped__() is expected


def test_a_system_that_does_not_tell_the_maker(monkeypatch):
    def missing(*args, **options):
        raise FileNotFoundError

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(Path, "read_text", missing)
    assert products.onednn_is_faster.__wrapped__() is False
