"""fp16 and bf16 as types in the ONNX graph of a stage; what sums over much stays float32."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from rnp_deploy.errors import ExportError
from rnp_deploy.exporters.stage_graph import ZEROS_FOLLOW

__all__ = ["HALF_TYPES", "give_half_types"]

HALF_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

_FLOAT = ir.DataType.FLOAT
#: Sums over many values, and what such sums normalise.
_IN_FLOAT32 = frozenset((
    "ArgMax", "ArgMin", "CumSum", "GlobalAveragePool", "GlobalLpPool", "GroupNormalization",
    "InstanceNormalization", "LRN", "LayerNormalization", "LogSoftmax", "LpNormalization", "LpPool",
    "MeanVarianceNormalization", "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Softmax",
))  # fmt: skip
#: They move the values of their first input, and give them in the type they come in.
_MOVING = frozenset((
    "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
))  # fmt: skip
#: They take any type in their first input, and what they give does not depend on it.
_TYPE_BLIND = frozenset(("Cast", "CastLike", "Shape", "Size"))


def give_half_types(
    model: ir.Model, precision: str, float32_ends: Collection[str], parameters: Collection[str], where: str
) -> None:
    """Turn the weights, constants and tensors of a float32 graph into half precision.

    At no node two floating types meet: casts stand where a tensor is needed in another type than it is made in,
    one for each tensor and type.

    Args:
        model: Changed in place; its weights are not yet stored.
        precision: ``"fp16"`` or ``"bf16"``.
        float32_ends: Names of the inputs and outputs that stay float32.
        parameters: Names of those that may round to 0; of other constants none may vanish whole.
        where: Names the graph in errors.

    Raises:
        ExportError: A weight or constant is beyond the type's range or a constant below it, or an operator is not
            known to ONNX.
    """
    ShapeInferencePass()(model)  # functions that were inlined left values without types
    half, graph = HALF_TYPES[precision], model.graph
    opset = model.opset_imports[""]
    made = (value for node in graph for value in node.outputs)
    floats = {v for v in (*graph.inputs, *graph.initializers.values(), *made) if v.dtype == _FLOAT}
    wanted = _wanted_types(graph, floats, half, opset, where)
    for value in graph.inputs:
        if value in floats and value.name not in float32_ends:
            value.type = ir.TensorType(half)
    for value in graph.initializers.values():
        uses = [wanted[use.node, use.idx] for use in value.uses() if (use.node, use.idx) in wanted]
        if value in floats and any(dtype != _FLOAT for dtype in uses):
            _round_weight(value, half, precision, value.name in parameters, where)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(graph):
        for i, x in enumerate(node.inputs):
            dtype = wanted.get((node, i))
            if x is not None and dtype is not None and x.dtype != dtype:
                node.replace_input_with(i, _cast(graph, casts, x, dtype, node))
        for i, output in enumerate(node.outputs):
            if output in floats:
                output.type = ir.TensorType(_made(node, i, half, opset, where))
    _type_outputs(graph, half, floats, float32_ends)


def _wanted_types(
    graph: ir.Graph, floats: Collection[ir.Value], half: ir.DataType, opset: int, where: str
) -> dict[tuple[ir.Node, int], ir.DataType | None]:
    """Node and position → the type in which it needs that float input."""
    wanted = {}
    for node in graph:
        if (node.domain, node.op_type) != ZEROS_FOLLOW:
            _schema(node, opset, where)
        for i, value in enumerate(node.inputs):
            if value in floats:
                wanted[node, i] = _wanted(node, i, half, opset, where)
    return wanted


def _type_outputs(
    graph: ir.Graph, half: ir.DataType, floats: Collection[ir.Value], float32_ends: Collection[str]
) -> None:
    """Cast the outputs that are made in another type than they are to have."""
    for i, value in enumerate(graph.outputs):
        dtype = _FLOAT if value.name in float32_ends else half
        if value in floats and value.dtype not in (dtype, None):
            name, value.name = value.name, f"{value.name}_as_{value.dtype.name.lower()}"
            graph.outputs[i] = _cast(graph, {}, value, dtype, None)
            graph.outputs[i].name = name


def _schema(node: ir.Node, opset: int, where: str) -> onnx.defs.OpSchema:
    if any(
        attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attr in node.attributes.values()
    ):
        raise ExportError(
            f"{where}: {node.op_type} holds graphs of its own, whose types are not changed; export the network in fp32"
        )
    try:
        return onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError as err:
        raise ExportError(
            f"{where}: {node.domain}::{node.op_type} is no operator of ONNX, so its types are not known; "
            "export the network in fp32"
        ) from err


def _moves(node: ir.Node) -> bool:
    return (not node.domain and node.op_type in _MOVING) or (node.domain, node.op_type) == ZEROS_FOLLOW


def _wanted(node: ir.Node, i: int, half: ir.DataType, opset: int, where: str) -> ir.DataType | None:
    """The type in which a node needs an input; None: as it comes."""
    if i == 0 and (_moves(node) or node.op_type in _TYPE_BLIND):
        return None
    if node.op_type in _IN_FLOAT32:
        return _FLOAT
    formal = _schema(node, opset, where).inputs
    return half if _allows(formal[min(i, len(formal) - 1)], half) else _FLOAT


def _made(node: ir.Node, i: int, half: ir.DataType, opset: int, where: str) -> ir.DataType:
    """The type of an output that was float32; sets the attributes that say it."""
    if _moves(node):
        dtype = None if node.inputs[0] is None else node.inputs[0].dtype
        return dtype or half
    if node.op_type in _IN_FLOAT32:
        return _FLOAT
    formal = _schema(node, opset, where).outputs
    if not _allows(formal[min(i, len(formal) - 1)], half):
        return _FLOAT
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", half.value)
    if node.op_type == "ConstantOfShape":
        filled = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(filled.astype(half.numpy())))
    return half


def _allows(formal: onnx.defs.OpSchema.FormalParameter, half: ir.DataType) -> bool:
    return f"tensor({half.name.lower()})" in formal.types


def _round_weight(value: ir.Value, half: ir.DataType, precision: str, is_parameter: bool, where: str) -> None:
    full = value.const_value.numpy()  # type: ignore[union-attr]
    with np.errstate(over="ignore"):
        rounded = full.astype(half.numpy())
    lost = np.isfinite(full) & ~np.isfinite(rounded.astype(np.float32))
    if lost.any():
        raise ExportError(
            f"{where}: {value.name} holds {full[lost].flat[0]:.6g}, beyond the range of {precision}; "
            f"export the network in {'bf16 or fp32' if precision == 'fp16' else 'fp32'}"
        )
    if full.any() and not rounded.any() and not is_parameter:
        readers = ", ".join(f"{node.op_type} {node.outputs[0].name}" for node in value.consumers())
        # In float32 the addition alone would not help: what it keeps from 0 is rounded behind it.
        raise ExportError(
            f"{where}: the constant {np.abs(full).max():.6g} that {readers} reads rounds to 0 in {precision}; "
            f"raise it, or export the network in {'bf16 or fp32' if precision == 'fp16' else 'fp32'}"
        )
    value.const_value = ir.Tensor(rounded, dtype=half, name=str(value.name))
    value.type = ir.TensorType(half)


def _cast(
    graph: ir.Graph,
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
    value: ir.Value,
    dtype: ir.DataType,
    before: ir.Node | None,
) -> ir.Value:
    """The value in another type; the cast stands before its first reader, or last."""
    if (value, dtype) not in casts:
        node = ir.node("Cast", [value], {"to": dtype.value})
        cast = node.outputs[0]
        cast.name, cast.type, cast.shape = (
            f"{value.name}_{dtype.name.lower()}",
            ir.TensorType(dtype),
            value.shape,
        )
        if before is None:
            graph.append(node)
        else:
            graph.insert_before(before, node)
        casts[value, dtype] = cast
    return casts[value, dtype]
