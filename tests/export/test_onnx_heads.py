"""ONNX Runtime's transformer optimizer takes the head counts from the graph, whatever it is told."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models
import tiny_small
from onnxruntime.transformers import optimizer

from emmental.export.onnx import export_onnx, load_session
from emmental.shrinking import shrink

FUSED = tuple(set(tiny_models.MODEL_TYPES) - {"mpnet", "deberta-v2", "modernbert"})
"""Types whose attention the optimizer knows."""
SIZES = {
    "dense": [(range(4), range(12))] * 3,
    "two heads": [([0, 2], [1, 2, 3])] * 3,
    "uneven": [([2, 0, 1], [1, 5, 7]), ([1], [3]), ([3], [])],
    "no heads": tiny_small.UNEVEN,
}


def answers(file: str | Path, model) -> np.ndarray:
    session = onnx.load(file)
    inputs = tiny_small.batch(model)
    ready = load_session(file)
    assert {value.name for value in session.graph.input} == {*ready.input_names}
    return ready(**inputs).logits.numpy()


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_each_layer_is_fused_with_its_own_heads(model_type, sizes, tmp_path):
    kept = [tuple(map(list, layer)) for layer in SIZES[sizes]]
    dense = tiny_small.dense(model_type)
    model = dense if sizes == "dense" else shrink(dense, kept)
    export_onnx(model, tmp_path / "model.onnx")
    wanted = answers(tmp_path / "model.onnx", model)
    logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
    for told in ({"num_heads": tiny_small.HEADS, "hidden_size": model.config.hidden_size}, {}):
        fused = optimizer.optimize_model(str(tmp_path / "model.onnx"), model_type="bert", **told)
        fused.save_model_to_file(str(tmp_path / "fused.onnx"))
        assert np.abs(answers(tmp_path / "fused.onnx", model) - wanted).max() < 1e-5
        found = [next(a.i for a in n.attribute if a.name == "num_heads") for n in attention(fused.model)]
        expected = [len(heads) for heads, _ in kept[:-1] if heads] if model_type in FUSED else []
        if model_type == "albert":  # some of its layers are left as they are
            assert {*found} <= {*expected}
        else:
            assert found == expected


def attention(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Attention"]


def test_no_constant_is_left_over(tmp_path):
    export_onnx(tiny_small.dense("bert"), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    read = {name for node in graph.node for name in node.input}
    made = {value.name for value in graph.initializer}
    made |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    assert made <= read
