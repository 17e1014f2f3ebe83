"""Tools that would lose the masks of `MaskedLinear` are refused."""

from __future__ import annotations

import io

import pytest
import tiny_masked
import torch

from emmental.errors import UserError
from emmental.patching import unmask_linears

TOOLS = {
    "torch.ao.quantization.quantize_dynamic": lambda model, ids: torch.ao.quantization.quantize_dynamic(model),
    "torch.jit.trace": lambda model, ids: torch.jit.trace(model, (ids,), strict=False),
    "torch.fx": lambda model, ids: torch.fx.symbolic_trace(model.bert.encoder.layer[0].intermediate),
    "torch.export": lambda model, ids: torch.export.export(model, (ids,)),
}


class TestToolsThatWouldLoseTheMasks:
    """They are refused in one line; after `unmask_linears` they work."""

    @pytest.fixture
    def model(self):
        return tiny_masked.make()

    @pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)
    @pytest.mark.filterwarnings("ignore")
    def test_refused_until_unmasked(self, model, tool):
        ids = torch.tensor([[2, 5, 9, 3]])
        with pytest.raises(UserError, match=r"Make a plain model first, with python -m emmental.export.bertarize"):
            tool(model, ids)
        expected = model(ids).logits
        unmask_linears(model)
        made = tool(model, ids)
        if tool is TOOLS["torch.jit.trace"]:
            assert torch.allclose(made(ids)["logits"], expected, atol=1e-5)

    @pytest.mark.filterwarnings("ignore")
    def test_onnx_by_tracing(self, model):
        with pytest.raises(UserError, match="Make a plain model first"):
            torch.onnx.export(model, (torch.tensor([[2, 5, 3]]),), io.BytesIO(), dynamo=False)

    def test_adapters(self, model):
        peft = pytest.importorskip("peft")
        with pytest.raises(UserError, match="Make a plain model first"):
            peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"]))

    def test_looking_for_what_they_set_is_no_mistake(self, model):
        assert not hasattr(model.bert.encoder.layer[0].output.dense, "qconfig")
