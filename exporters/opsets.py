"""Opsets of ONNX that torch.onnx no longer writes: what changed since, said in the older words."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from rnp_deploy.errors import ExportError

__all__ = ["IR_VERSIONS", "OLDEST_TORCH_OPSET", "lower_opset"]

#: The oldest that torch.onnx writes by itself.
OLDEST_TORCH_OPSET = 18
#: What readers of an opset's time take: the IR version that came with it. Of later ones, what torch.onnx writes.
IR_VERSIONS = {17: 8, 18: 8, 19: 9}
#: Since opset 18, with the value that stands for what was always done before.
_NEW_ATTRIBUTES = {"antialias": 0, "keep_aspect_ratio_policy": "stretch", "noop_with_empty_axes": 0}


def lower_opset(model: ir.Model, opset: int, where: str) -> None:
    """Rewrite a graph of opset 18 as one of opset 17.

    Args:
        model: Changed in place. Nodes of other domains than ONNX's own are left alone.
        opset: 17.
        where: Names the graph in errors.

    Raises:
        ExportError: An operator, or what is asked of it, has no form in the older opset.
    """
    for node in model.graph:
        if node.domain:
            continue
        if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.inputs) > 1:
            node.attributes["axes"] = ir.AttrInt64s("axes", _numbers(node, 1, where, opset))
            node.resize_inputs(1)
        elif node.op_type == "Pad" and len(node.inputs) > 3:
            _name_all_axes(model.graph, node, where, opset)
        elif node.op_type == "Split" and len(node.inputs) == 1:
            _split_evenly(node, where, opset)
        for name, default in _NEW_ATTRIBUTES.items():
            given = node.attributes.get(name)
            if given is not None and given.value == default:
                node.attributes.pop(name)
        _check_known(node, where, opset)
    model.graph.opset_imports[""] = opset


def _check_known(node: ir.Node, where: str, opset: int) -> None:
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError as err:
        raise _has_no_form(node, where, opset) from err
    if len(node.inputs) > schema.max_input or not set(node.attributes) <= set(schema.attributes):
        raise _has_no_form(node, where, opset)


def _numbers(node: ir.Node, position: int, where: str, opset: int) -> list[int]:
    given = node.inputs[position]
    if given is None or given.const_value is None:
        raise _has_no_form(node, where, opset)
    return [int(number) for number in given.const_value.numpy().flatten()]


def _name_all_axes(graph: ir.Graph, node: ir.Node, where: str, opset: int) -> None:
    shape, x = node.outputs[0].shape, node.inputs[0]
    shape = shape if shape is not None or x is None else x.shape
    if shape is None:
        raise _has_no_form(node, where, opset)
    axes, given = _numbers(node, 3, where, opset), _numbers(node, 1, where, opset)
    pads = [0] * (2 * len(shape))
    for i, axis in enumerate(axes):
        pads[axis % len(shape)], pads[len(shape) + axis % len(shape)] = given[i], given[len(axes) + i]
    tensor = ir.tensor(pads, dtype=ir.DataType.INT64, name=f"{node.outputs[0].name}_pads")
    value = ir.Value(
        name=tensor.name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape([len(pads)])
    )
    graph.register_initializer(value)
    node.replace_input_with(1, value)
    node.resize_inputs(3)


def _split_evenly(node: ir.Node, where: str, opset: int) -> None:
    """Without a number of outputs, opset 17 takes as many equal parts as there are outputs."""
    axis = node.attributes.get_int("axis", 0)
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    size = None if shape is None else shape[axis]
    if not isinstance(size, int) or size % len(node.outputs):
        raise _has_no_form(node, where, opset)
    node.attributes.pop("num_outputs", None)


def _has_no_form(node: ir.Node, where: str, opset: int) -> ExportError:
    return ExportError(
        f"{where}: {node.op_type} ({node.name}) has no form in ONNX opset {opset}; export with a later opset"
    )
