"""The last lines of a run."""

from __future__ import annotations

import pytest

from emmental.inference import engines
from emmental.inference.comparison import Comparison
from emmental.reporting.engine_lines import advice

QUALITY = [
    {"name": "torch", "judged": 0.9, "agreement": 1.0},
    {"name": "onnx-int8", "judged": 0.901, "agreement": 0.5},
]
TIMES = [
    {"model": "torch", "batch": 1, "length": 128, "median_ms": 10.0, "speedup": 1.0},
    {"model": "onnx-int8", "batch": 1, "length": 128, "median_ms": 5.0, "speedup": 2.0},
]


@pytest.fixture(autouse=True)
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "why_not", lambda name: "no" if name.startswith("openvino") else None)


def test_an_engine_that_loses_too_much_is_not_offered() -> None:
    compared = Comparison(QUALITY, TIMES, {"onnx-int8": "ONNX Runtime int8 loses 1.00 points"}, "dynamic")
    assert advice(compared, "out", "small_bert", 3.0) == [
        "The best engine on this machine, for 1 x 128 tokens, is PyTorch fp32: 10.00 ms, 1.0 times PyTorch fp32; "
        "3.0 times the dense model in PyTorch fp32",
        "import emmental",
        "from transformers import AutoModelForSequenceClassification",
        'model = AutoModelForSequenceClassification.from_pretrained("out")',
        "not offered: ONNX Runtime int8 loses 1.00 points",
        "OpenVINO fp32, OpenVINO bf16, OpenVINO int8: no",
    ]


def test_an_engine_that_rounds_says_what_it_changes() -> None:
    first, command, *_ = advice(Comparison(QUALITY, TIMES, {}, "static"), "out", "small_bert", 3.0)
    assert first == (
        "The best engine on this machine, for 1 x 128 tokens, is ONNX Runtime int8 (static): 5.00 ms, 2.0 times "
        "PyTorch fp32; +0.10 points, 50.00 % of the answers change; 6.0 times the dense model in PyTorch fp32"
    )
    assert command.endswith("--int8_scales static")
