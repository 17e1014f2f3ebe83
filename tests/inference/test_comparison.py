"""Forms of a model: the same rows for each, and the best is the fastest whose quality allows it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tiny_masked
import tiny_small
import torch

from emmental.export import onnx_int8
from emmental.inference import comparison, engines
from emmental.inference.comparison import Evaluation, best_engine, compare_engines, not_offered, quality
from emmental.inference.engines import why_not
from emmental.shrinking import shrink

INPUTS = {
    "input_ids": torch.tensor([[2, 5, 9, 17, 30, 3], [2, 7, 8, 3, 0, 0]]),
    "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
    "token_type_ids": torch.zeros(2, 6, dtype=torch.int64),
}


@pytest.fixture(scope="module")
def model():
    return tiny_masked.make(num_labels=3)


def evaluated(labels, engine, title) -> Evaluation:
    logits = engine(**INPUTS).logits.numpy()
    accuracy = float((logits.argmax(1) == labels).mean())
    return Evaluation(logits, {"acc": accuracy}, accuracy)


def judged(value: float, *classes: int, labels: int = 2) -> Evaluation:
    return Evaluation(
        np.eye(labels)[list(classes)] if labels > 1 else np.ones((len(classes), 1)), {"acc": value}, value
    )


def time_of(model: str, milliseconds: float, length: int = 128) -> dict:
    row = {"model": model, "batch": 1, "length": length, "median_ms": milliseconds}
    return row | {"speedup": 10.0 / milliseconds}


def test_an_engine_that_loses_more_than_0_3_points_is_not_offered():
    """bf16 loses exactly 0.3; an engine that does not round is always offered."""
    rows = quality(
        {
            "torch": judged(0.9, 0, 1, 1, 0),
            "onnx": judged(0.8, 0, 1, 1, 0),
            "torch-bf16": judged(0.897, 0, 1, 1, 0),
            "onnx-int8": judged(0.8969, 0, 1, 0, 0),
        }
    )
    assert not_offered(rows) == {
        "onnx-int8": "ONNX Runtime int8 loses 0.31 points and changes 25.00 % of the answers; at most 0.3 may be lost"
    }
    assert [row["agreement"] for row in rows] == [1.0, 1.0, 1.0, 0.75]
    times = [
        time_of(name, ms) for name, ms in zip(("torch", "onnx", "torch-bf16", "onnx-int8"), (10, 8, 4, 3), strict=True)
    ]
    assert best_engine(times, not_offered(rows))["model"] == "torch-bf16"
    assert best_engine(times, ["onnx-int8", "torch-bf16"])["model"] == "onnx"
    assert best_engine(times, ["torch", "onnx", "onnx-int8", "torch-bf16"]) is None


def test_the_mean_over_all_shapes_decides():
    """Speed-ups 5 and 1 have the geometric mean 2.2; 2 and 4 have 2.8 and win."""
    times = [time_of("onnx", 2.0), time_of("onnx", 10.0, 32), time_of("torch", 5.0), time_of("torch", 2.5, 32)]
    assert best_engine(times, ()) == time_of("torch", 2.5, 32)


def test_scores_have_no_classes():
    first, other = quality({"torch": judged(0.9, 0, 0, labels=1), "onnx-int8": judged(0.8, 0, 0, labels=1)})
    assert (first["agreement"], other["agreement"], other["largest_difference"]) == (None, None, 0.0)
    assert not_offered([first, other])["onnx-int8"] == (
        "ONNX Runtime int8 loses 10.00 points; at most 0.3 may be lost"
    )


def test_every_engine_is_judged_on_the_same_rows(model):
    compared = compare_engines(model, partial(evaluated, np.array([0, 1])), (1, 8), ["onnx", "onnx-int8"], 1)
    assert [row["name"] for row in compared.quality] == ["torch", "onnx", "onnx-int8"]
    assert [row["agreement"] for row in compared.quality[:2]] == [1.0, 1.0]
    first, second, _ = compared.latency
    assert (first["speedup"], second["batch"], second["length"]) == (1.0, 1, 8)
    assert second["speedup"] == pytest.approx(first["median_ms"] / second["median_ms"])
    assert compared.int8_form == "dynamic"


@pytest.mark.parametrize(("form", "wanted"), [("masked", ["torch", "sparse"]), ("small", ["torch"])])
def test_only_what_has_a_sparse_form_is_tried_in_it(model, monkeypatch, form, wanted):
    monkeypatch.setattr(engines, "available", lambda calibrated: ["torch", "sparse"])
    tried = model if form == "masked" else shrink(tiny_small.dense("bert"), tiny_small.UNEVEN)
    compared = compare_engines(tried, partial(evaluated, np.zeros(2)), (1, 8), threads=1)
    assert [row["model"] for row in compared.latency] == wanted


@pytest.mark.parametrize("refused", ["dynamic", "static"])
def test_of_both_forms_of_int8_the_one_that_costs_little_is_kept(model, monkeypatch, refused):
    """The first form that is tried loses all points, the other none."""
    if why_not("onnx-int8") is not None:
        pytest.skip(why_not("onnx-int8"))
    other = "static" if refused == "dynamic" else "dynamic"
    distances = iter((1e-4, 2e-4) if refused == "dynamic" else (2e-4, 1e-4))
    monkeypatch.setattr(onnx_int8, "distance", lambda *_: next(distances))
    with torch.no_grad():
        right = model(**INPUTS).logits.argmax(1).numpy()
    load, tried, asked = comparison.from_onnx, [], []

    def from_onnx(path, *rest):
        tried.append(path.stem)
        return load(path, *rest)

    def evaluate(engine, title):
        asked.append(title)
        evaluation = evaluated(right, engine, title)
        return Evaluation(evaluation.logits, evaluation.metrics, 0.0) if tried and tried[-1] == refused else evaluation

    monkeypatch.setattr(comparison, "from_onnx", from_onnx)
    compared = compare_engines(model, evaluate, (1, 8), ["onnx-int8"], 1, calibration=[INPUTS])
    assert (tried, compared.int8_form, compared.not_offered) == ([refused, other], other, {})
    assert asked == ["PyTorch fp32", *["ONNX Runtime int8"] * 2]  # the form that is kept is not asked again
