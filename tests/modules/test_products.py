"""Products of a linear layer: the same numbers from either library, and the choice between them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
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


class TestFastProducts:
    """The context under which every nn.Linear takes these products."""

    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 64, bias=False))

    def numbers(self, model, context):
        x = random(3, 5, 96).requires_grad_()
        with context:
            output = model(x)
        gradients = torch.autograd.grad((output * random(64)).sum(), [x, *model.parameters()])
        return [output, *gradients]

    def test_numbers_of_plain_pytorch(self, library, model):
        expected = self.numbers(model, nullcontext())
        for got, wanted in zip(self.numbers(model, products.fast_products()), expected, strict=True):
            assert torch.allclose(got, wanted, atol=1e-4)

    @ONEDNN
    def test_they_are_ours(self, monkeypatch, model):
        used = []
        monkeypatch.setattr(products, "linear", lambda *tensors: used.append(1) or F.linear(*tensors))
        with products.fast_products(), torch.no_grad():
            model(random(3, 96))
        assert len(used) == 2

    def test_autocast_is_left_to_pytorch(self, library, model):
        with products.fast_products(), torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(random(3, 96)).dtype == torch.bfloat16

    def test_compiled_once_and_without_them(self, library, model):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled, x = torch.compile(model, backend=counter), random(7, 96)
        with products.fast_products():
            assert torch.allclose(compiled(x), model(x), atol=1e-4)
        assert counter.frame_count == 1


def test_strides_do_not_matter(library):
    x, weight = random(96, 10).t(), random(96, 64).t()
    assert torch.allclose(products.linear(x, weight), x @ weight.t(), atol=1e-4)


def test_rows_that_lie_far_apart_are_brought_together(monkeypatch):
    given = []

    def product(input, weight):
        given.append((input.t().is_contiguous(), weight.t().is_contiguous()))
        return input @ weight.t()

    monkeypatch.setattr(products, "linear", product)
    gradient, first = torch.randn(4, 64), torch.randn(4, 8, 64)[:, 0]
    torch.testing.assert_close(products.weight_gradient(gradient, first), gradient.t() @ first)
    assert given == [(True, True)]


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
