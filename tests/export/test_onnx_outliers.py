"""A few channels of each product in float32: which, and that outputs stay; embeddings with a scale for each row."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
import torch
from onnx import helper, numpy_helper

from emmental.export.onnx import export_onnx
from emmental.export.onnx_int8 import _random_tokens, quantize_int8
from emmental.export.onnx_outliers import largest_inputs, outliers, products, round_embeddings, split_outliers
from emmental.export.onnx_session import load_session


def test_outliers_have_large_values_or_large_weights():
    largest, matrix = np.ones(100), np.ones((100, 5))
    largest[10:18] = 50.0
    matrix[10, 2] = 90.0  # is among them already
    matrix[40:48, 1] = -7.0
    assert outliers(largest, [np.ones((100, 2)), matrix]).tolist() == [*range(10, 18), *range(40, 48)]


@pytest.mark.parametrize("model_type", tiny_models.MODEL_TYPES)
def test_a_split_graph_has_the_same_outputs(model_type, tmp_path):
    """ALBERT's layers share matrices: each is split once, for all inputs that it has."""
    model = tiny_models.model(model_type, hidden_size=64, intermediate_size=128)
    export_onnx(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    tokens = _random_tokens(graph)
    names = [node.name for node in products(graph)]
    exact = split_outliers(graph, largest_inputs(graph, [tokens]))
    assert {f"{name}_few" for name in names} <= {*exact} | {f"{name}_few" for name in exact}
    assert any(name.endswith("_few") for name in exact)
    onnx.save(graph, tmp_path / "split.onnx")
    wanted, got = (load_session(tmp_path / name)(**tokens).logits for name in ("model.onnx", "split.onnx"))
    assert (got - wanted).abs().max() <= 1e-5
    quantize_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    got = load_session(tmp_path / "int8.onnx")(**tokens).logits
    assert 1e-6 < (got - wanted).abs().max() < 0.5


def test_outliers_do_not_spoil_int8(tmp_path):
    """One neuron with weights a hundred times the others': without the split they round to nothing."""
    model = tiny_models.model("bert", hidden_size=64, intermediate_size=128)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.intermediate.dense.weight[5] /= 100
            layer.intermediate.dense.bias[5] = 0
            layer.output.dense.weight[:, 5] *= 100
    export_onnx(model, tmp_path / "model.onnx")
    quantize_int8(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    int8 = onnx.load(tmp_path / "int8.onnx")
    coarsest = {
        value.name: numpy_helper.to_array(value).max()
        for value in int8.graph.initializer
        if value.name.endswith("_scale")
    }
    largest = max(layer.output.dense.weight.abs().max().item() for layer in model.bert.encoder.layer)
    assert coarsest
    assert max(coarsest.values()) < largest / 63 / 10


def test_embeddings_have_a_scale_for_each_row():
    table = np.array([[0.5, -1.27], [254.0, 2.0], [0.0, 0.0]], np.float32)
    look_up = helper.make_node("Gather", ["table", "ids"], ["values"], "look_up")
    graph = helper.make_graph(
        [look_up],
        "tiny",
        [helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [2, 2])],
        [helper.make_tensor_value_info("values", onnx.TensorProto.FLOAT, [2, 2, 2])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    round_embeddings(model)
    stored = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    assert stored["table"].tolist() == [[50, -127], [127, 1], [0, 0]]
    assert stored["table_scales"].ravel() == pytest.approx([0.01, 2.0, 1.0])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"ids": np.array([[0, 1], [2, 0]])})[0]
    assert found == pytest.approx(np.array([[[0.5, -1.27], [254.0, 2.0]], [[0.0, 0.0], [0.5, -1.27]]]))


def test_a_graph_without_products_has_no_inputs_to_measure():
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input_ids"], ["logits"])],
        "bare",
        [value("input_ids", onnx.TensorProto.INT64, [1, 2])],
        [value("logits", onnx.TensorProto.INT64, [1, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    ids = torch.ones(1, 2, dtype=torch.int64)
    assert largest_inputs(model, [{"input_ids": ids, "attention_mask": ids}]) == {}
