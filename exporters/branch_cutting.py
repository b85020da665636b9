"""From the ONNX graph of a whole stage to that of one branch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from rnp_deploy.network.channels import ParameterCut
from rnp_deploy.network.stages import StageTensor

__all__ = ["cut_branch"]


def cut_branch(
    stage: ir.Model,
    tensors: Sequence[StageTensor],
    cuts: Mapping[str, Sequence[ParameterCut]],
    kept: Mapping[str, int],
    kept_by_decision: Mapping[int, int],
) -> ir.Model:
    """Cut a stage down to the channels of one choice of options.

    Weights stay where they are in ``weights.bin``: a cut of axis 0 is a shorter length, any
    other a ``Slice`` node, which runtimes fold when they load the graph.

    Args:
        stage: Full width; its weights are external tensors. Left as it is.
        tensors: The stage's inputs and outputs.
        cuts: Parameter name → its cuts.
        kept: Conv path → channels kept, for every option the stage depends on.
        kept_by_decision: The same by decision.

    Returns:
        The branch. Its inputs and outputs have the stage's names; pooled features are
        padded with zeros to full width.
    """
    model = stage.clone()
    graph = model.graph
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None  # widths have changed; runtimes infer them
    cut_axes = {name: _kept_axes(cuts.get(name, ()), kept) for name in graph.initializers}
    for node in graph:
        _narrow_depthwise(node, cut_axes)
    for name, axes in cut_axes.items():
        if axes:
            _cut_initializer(graph, graph.initializers[name], axes)
    described = {tensor.name: tensor for tensor in tensors}
    for value in graph.inputs:
        tensor = described[str(value.name)]
        value.shape = ir.Shape(["N", *_branch_shape(tensor, kept_by_decision)])
    for position, value in enumerate(graph.outputs):
        tensor = described[str(value.name)]
        if tensor.pooled and tensor.follows is not None:
            missing = tensor.shape[0] - kept_by_decision[tensor.follows]
            value = _pad_features(graph, position, value, missing)
        value.shape = ir.Shape(["N", *_branch_shape(tensor, kept_by_decision)])
    return model


def _branch_shape(tensor: StageTensor, kept: Mapping[int, int]) -> tuple[int, ...]:
    if tensor.follows is None or tensor.pooled:
        return tensor.shape
    return (kept[tensor.follows] * tensor.repeat, *tensor.shape[1:])


def _kept_axes(cuts: Sequence[ParameterCut], kept: Mapping[str, int]) -> dict[int, int]:
    return {cut.axis: kept[cut.conv] * cut.repeat for cut in cuts if cut.conv in kept}


def _narrow_depthwise(node: ir.Node, cut_axes: Mapping[str, Mapping[int, int]]) -> None:
    if node.op_type != "Conv" or node.attributes.get_int("group", 1) == 1 or node.inputs[1] is None:
        return
    axes = cut_axes.get(str(node.inputs[1].name), {})
    if 0 in axes:
        node.attributes["group"] = ir.AttrInt64("group", axes[0])


def _cut_initializer(graph: ir.Graph, value: ir.Value, axes: Mapping[int, int]) -> None:
    full = value.const_value
    if not isinstance(full, ir.ExternalTensor):
        raise TypeError(f"{value.name} is cut but does not lie in the weights file")
    shape = list(full.shape.numpy())
    others = {axis: size for axis, size in axes.items() if axis > 0 and size < shape[axis]}
    shape[0] = axes.get(0, shape[0])
    value.shape = ir.Shape(shape)
    value.const_value = ir.ExternalTensor(
        full.location,
        full.offset,
        int(math.prod(shape) * full.dtype.itemsize),
        full.dtype,
        shape=ir.Shape(shape),
        name=str(value.name),
    )
    if not others:
        return
    bounds = {"starts": [0] * len(others), "ends": list(others.values()), "axes": list(others)}
    inputs = [value]
    for name, numbers in bounds.items():
        inputs.append(_constant(graph, f"{value.name}.{name}", numbers))
    users = list(value.uses())
    cut = ir.node("Slice", inputs)
    cut.outputs[0].name = f"{value.name}.cut"
    for user, position in users:
        user.replace_input_with(position, cut.outputs[0])
    graph.insert_before(graph[0], cut)


def _pad_features(graph: ir.Graph, position: int, value: ir.Value, missing: int) -> ir.Value:
    if not missing:
        return value
    name = value.name
    value.name, value.shape = f"{name}_narrow", None
    pads = _constant(graph, f"{name}_pads", [0, 0, 0, missing])
    pad = ir.node("Pad", [value, pads])
    graph.append(pad)
    padded = pad.outputs[0]
    padded.name, padded.type = name, value.type
    graph.outputs[position] = padded
    return padded


def _constant(graph: ir.Graph, name: str, numbers: Sequence[int]) -> ir.Value:
    tensor = ir.tensor(np.asarray(numbers, np.int64), name=name)
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape([len(numbers)]), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    return value
