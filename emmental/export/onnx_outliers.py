"""Channels that int8 cannot hold: a few inputs of each product stay in float32.

The values that go into a product share one scale, and so do the weights of each output. One channel with large values
or large weights makes these scales coarse for all the others. So `y = x W` becomes `int8((x m) W') + x[few] W[few]`:
`m` is 0 for those few channels and 1 elsewhere, and `W'` has zeros in their rows. This is the idea of LLM.int8()
(Dettmers et al., 2022), but the channels are chosen once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor

CHANNELS = 8
"""Inputs with the largest values, and as many with the largest weights, that stay in float32."""
_FEWEST = 8 * CHANNELS
"""A product of fewer inputs stays in float32."""
FLOAT = onnx.TensorProto.FLOAT


def products(model: onnx.ModelProto) -> list[NodeProto]:
    """The products of a graph with a stored matrix, (inputs, outputs)."""
    stored = {value.name for value in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in stored]


def largest_inputs(model: onnx.ModelProto, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """Name of each product's input -> (channels,) float32, the largest absolute value of each channel.

    Args:
        model: a float32 graph.
        batches: its inputs, each (batch, length) int64; padding is ignored if the product's input has all tokens.
    """
    names = list(dict.fromkeys(node.input[0] for node in products(model)))
    if not names:  # an encoder without heads and neurons; ONNX Runtime takes an empty list for all outputs
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = [value.name for value in session.get_inputs()]
    largest: dict[str, np.ndarray] = {}
    for batch in batches:
        real = batch["attention_mask"].numpy().astype(bool)
        found = session.run(names, {name: batch[name].numpy() for name in taken})
        for name, value in zip(names, found, strict=True):
            rows = value[real] if value.shape[:-1] == real.shape else value.reshape(-1, value.shape[-1])
            most = np.abs(rows).max(0)
            largest[name] = np.maximum(largest.get(name, most), most)
    return largest


def split_outliers(model: onnx.ModelProto, largest: Mapping[str, np.ndarray]) -> list[str]:
    """Rewrite the products of `model` in place; its outputs stay the same except for float rounding.

    Args:
        model: a float32 graph.
        largest: see `largest_inputs`.

    Returns:
        Names of the products that must stay in float32.
    """
    stored = {value.name: value for value in model.graph.initializer}
    around: dict[str, tuple[list[NodeProto], list[NodeProto]]] = {}  # name of a node -> nodes before and after it
    exact = []
    for nodes in _entangled(products(model)):
        matrices = {name: numpy_helper.to_array(stored[name]) for name in {node.input[1]: None for node in nodes}}
        channels = len(next(iter(matrices.values())))
        if channels < _FEWEST:
            exact += [node.name for node in nodes]
            continue
        most = np.max([largest[node.input[0]] for node in nodes], 0)
        few = outliers(most, matrices.values())
        for name, matrix in matrices.items():
            rest = matrix.copy()
            rest[few] = 0
            for suffix, part in (("most", rest), ("few", matrix[few])):
                model.graph.initializer.append(numpy_helper.from_array(part, f"{name}_{suffix}"))
        parted: set[str] = set()
        for node in nodes:
            name = node.input[0]
            before = [] if name in parted else _parted(model, name, few, channels)
            parted.add(name)
            around[node.name] = (before, _added(node))
            exact.append(f"{node.name}_few")
    none: tuple[list[NodeProto], list[NodeProto]] = ([], [])
    graph = [(node, *around.get(node.name, none)) for node in model.graph.node]
    ordered = [part for node, before, after in graph for part in (*before, node, *after)]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    _drop_unread(model)
    return exact


def _drop_unread(model: onnx.ModelProto) -> None:
    """Remove stored tensors that no node reads any more."""
    read = {name for node in model.graph.node for name in node.input}
    left = [value for value in model.graph.initializer if value.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(left)


def _entangled(nodes: Iterable[NodeProto]) -> list[list[NodeProto]]:
    """Groups of products that share inputs or, as layers of ALBERT do, matrices; in the order of the graph."""
    groups: list[list[NodeProto]] = []
    for node in nodes:
        touched = [group for group in groups if any({*node.input} & {*other.input} for other in group)]
        groups = [group for group in groups if group not in touched]
        groups.append([*(other for group in touched for other in group), node])
    return groups


def outliers(largest: np.ndarray, matrices: Iterable[np.ndarray]) -> np.ndarray:
    """Sorted indices of the channels that make scales coarse: `CHANNELS` by their values, then as many by weights.

    Args:
        largest: (inputs,), the largest absolute value of each.
        matrices: (inputs, outputs) each, all of the same input. Each matrix is divided by the median of its outputs'
            largest weights.
    """
    in_units = [np.abs(matrix) / max(np.median(np.abs(matrix).max(0)), 1e-12) for matrix in matrices]
    weights = np.max([matrix.max(1) for matrix in in_units], 0)
    by_value = np.argsort(-largest, kind="stable")[:CHANNELS]
    weights[by_value] = -1
    return np.sort(np.concatenate([by_value, np.argsort(-weights, kind="stable")[:CHANNELS]]))


def _parted(model: onnx.ModelProto, name: str, few: np.ndarray, channels: int) -> list[NodeProto]:
    """Nodes that split `name` into `name`_most and `name`_few."""
    mask = np.ones(channels, np.float32)
    mask[few] = 0
    for suffix, value in (("mask", mask), ("channels", few.astype(np.int64))):
        model.graph.initializer.append(numpy_helper.from_array(value, f"{name}_{suffix}"))
    return [
        helper.make_node("Mul", [name, f"{name}_mask"], [f"{name}_most"], f"{name}_part_most"),
        helper.make_node("Gather", [name, f"{name}_channels"], [f"{name}_few"], f"{name}_part_few", axis=-1),
    ]


def _added(node: NodeProto) -> list[NodeProto]:
    """Restrict a product to most channels, in place; return the nodes that add the product of the few others."""
    channels, matrix, output = node.input[0], node.input[1], node.output[0]
    node.input[0], node.input[1], node.output[0] = f"{channels}_most", f"{matrix}_most", f"{output}_most"
    return [
        helper.make_node("MatMul", [f"{channels}_few", f"{matrix}_few"], [f"{output}_few"], f"{node.name}_few"),
        helper.make_node("Add", [f"{output}_most", f"{output}_few"], [output], f"{node.name}_sum"),
    ]


def round_embeddings(model: onnx.ModelProto) -> None:
    """Store look-up tables (embeddings) in int8 with a scale for each row, in place: value = scale * integer."""
    stored = {value.name: value for value in model.graph.initializer}
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    tables = {name for name, value in stored.items() if len(value.dims) == 2 and value.data_type == FLOAT}
    tables = {
        name for name in tables if all(_looks_up(node, name) for node in readers.get(name, [])) and name in readers
    }
    for name in tables:
        table = numpy_helper.to_array(stored[name])
        scales = np.abs(table).max(1, keepdims=True) / 127
        scales[scales == 0] = 1
        stored[name].CopyFrom(numpy_helper.from_array(np.rint(table / scales).astype(np.int8), name))
        model.graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scales"))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        model.graph.node.append(node)
        if node.op_type == "Gather" and node.input[0] in tables:
            model.graph.node.extend(_scaled(model.graph.node[-1]))


def _looks_up(node: NodeProto, table: str) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and node.input[0] == table and axis == 0


def _scaled(node: NodeProto) -> list[NodeProto]:
    """Nodes that turn the integers of a look-up back into the table's values."""
    table, rows, output = node.input[0], node.input[1], node.output[0]
    node.output[0] = f"{output}_integers"
    return [
        helper.make_node("Cast", [f"{output}_integers"], [f"{output}_floats"], f"{node.name}_cast", to=FLOAT),
        helper.make_node("Gather", [f"{table}_scales", rows], [f"{output}_scales"], f"{node.name}_scales", axis=0),
        helper.make_node("Mul", [f"{output}_floats", f"{output}_scales"], [output], f"{node.name}_scaled"),
    ]
