"""Writes the number of heads of each layer into an ONNX graph, for programs that fuse attention."""

from __future__ import annotations

import math

import onnx


def fix_head_counts(model: onnx.ModelProto) -> None:
    """Replace the -1 in the shapes that split a projection into heads, (batch, length, ..., -1, ...), by its value.

    Transformers writes `view(batch, length, -1, head_size)`. ONNX Runtime's transformer optimizer then takes the head
    count that it is told, the one of config.json, although layers of a small model have fewer.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {each.name: each for each in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        shape = producers.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None or shape.op_type != "Concat" or not all(name in constants for name in shape.input[2:]):
            continue
        sizes = [int(onnx.numpy_helper.to_array(constants[name]).item()) for name in shape.input[2:]]
        columns = _columns(node.input[0], producers, constants)
        if len(sizes) > 1 and sizes.count(-1) == 1 and columns is not None:
            count = columns // -math.prod(sizes)
            name = f"{node.name}_heads"
            graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], [count]))
            shape.input[2 + sizes.index(-1)] = name
    read = {name for node in graph.node for name in node.input}
    for node in [each for each in graph.node if each.op_type == "Constant" and each.output[0] not in read]:
        graph.node.remove(node)
    for tensor in [each for each in graph.initializer if each.name not in read]:
        graph.initializer.remove(tensor)


def _columns(name: str, producers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]) -> int | None:
    """The last dimension of a product with a stored matrix, with or without a bias; None for any other value."""
    node = producers.get(name)
    if node is not None and node.op_type == "Add":
        node = next((producers[each] for each in node.input if each in producers and each not in constants), None)
    if node is None or node.op_type != "MatMul" or node.input[1] not in constants:
        return None
    return constants[node.input[1]].dims[-1]
