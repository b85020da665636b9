"""The types in a bundle's graphs, read back from the ONNX."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from rnp_deploy.bundle import open_bundle

__all__ = ["graph_with", "mixed_nodes", "value_types", "whole_graphs"]

FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def whole_graphs(path: Path) -> dict[str, onnx.ModelProto]:
    """File → its graph, external weights replaced by zeros, so that the checker can see it."""
    models = {}
    for file, data in open_bundle(path).graphs.items():
        model = onnx.ModelProto.FromString(data)
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                size = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
                del tensor.external_data[:]
                tensor.data_location = TensorProto.DEFAULT
                tensor.raw_data = b"\0" * size
        models[file] = model
    return models


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Name → element type of every value."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


def mixed_nodes(model: onnx.ModelProto) -> Iterator[str]:
    """Nodes two of whose tensors share a type by ONNX's rules, but not in the graph; or that no rule allows."""
    types = value_types(model)
    opset = model.opset_import[0].version
    for node in model.graph.node:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        bound: dict[str, set[int]] = {}
        for formal, names in ((schema.inputs, node.input), (schema.outputs, node.output)):
            for i, name in enumerate(names):
                if name:
                    known = formal[min(i, len(formal) - 1)]
                    elem = types[name]
                    bound.setdefault(known.type_str, set()).add(elem)
                    kind = TensorProto.DataType.Name(elem).lower()
                    if f"tensor({kind})" not in known.types:
                        yield f"{node.op_type} {name} is {kind}"
        yield from (f"{node.op_type} {node.output[0]}" for kinds in bound.values() if len(kinds) > 1)
        floats = {types[name] for name in node.input if name and types[name] in FLOATING}
        if len(floats) > 1 and node.op_type != "Resize":
            yield f"{node.op_type} {node.output[0]}"


def graph_with(*nodes: onnx.NodeProto) -> ir.Model:
    """These nodes between ``images`` and ``y``, both float32 ``[N, 4]``; they may be of the domain ``own`` too."""
    ends = [[helper.make_tensor_value_info(name, 1, ["N", 4])] for name in ("images", "y")]
    graph = helper.make_graph(nodes, "g", *ends)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets))
