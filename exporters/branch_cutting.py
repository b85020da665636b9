"""From the ONNX graph of a whole stage to that of one branch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from rnp_deploy.bundle.manifest import TensorManifest
from rnp_deploy.exporters.stage_graph import ZEROS_FOLLOW, add_constant, replace_node
from rnp_deploy.network.channels import ParameterCut

__all__ = ["cut_branch", "loaded_weight_bytes"]

_PAD_TAKES_AXES = 18  # the opset since when


def cut_branch(
    stage: ir.Model,
    tensors: Sequence[TensorManifest],
    cuts: Mapping[str, Sequence[ParameterCut]],
    kept: Mapping[str, int],
    options: Mapping[int, int],
) -> ir.Model:
    """Cut a stage down to the channels of one choice of options.

    Weights stay where they are in ``weights.bin``: a cut of axis 0 is a shorter length, any
    other a ``Slice`` node, which runtimes fold when they load the graph.

    Args:
        stage: Full width; its weights are external tensors. Left as it is.
        tensors: The stage's inputs and outputs.
        cuts: Parameter name → its cuts.
        kept: Conv path → channels kept, for every option the stage depends on.
        options: Decision → option, of those the stage depends on.

    Returns:
        The branch. Its inputs and outputs have the stage's names.
    """
    model = stage.clone()
    graph = model.graph
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None  # widths have changed; runtimes infer them
    cut_axes = {name: _kept_axes(cuts.get(name, ()), kept) for name in graph.initializers}
    for node in list(graph):
        _narrow_grouped(node, cut_axes)
        if (node.domain, node.op_type) == ZEROS_FOLLOW:
            if node.attributes["padded"].as_int():
                _put_zeros(graph, node, options)
            else:
                _drop_mark(graph, node)
    model.opset_imports.pop(ZEROS_FOLLOW[0], None)
    for name, axes in cut_axes.items():
        if axes:
            _cut_initializer(graph, graph.initializers[name], axes)
    described = {tensor.name: tensor for tensor in tensors}
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(["N", *described[str(value.name)].shape_at(options)])
    return model


def loaded_weight_bytes(branch: ir.Model) -> int:
    """Bytes of weights a runtime holds once it has folded the slices of a branch."""
    total = 0
    for value in branch.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            share = 1.0
            for user in value.consumers():
                if user.op_type == "Slice" and user.inputs[0] is value:
                    shape, ends = value.const_value.shape.numpy(), user.inputs[2].const_value.numpy()  # type: ignore[union-attr]
                    axes = user.inputs[3].const_value.numpy()  # type: ignore[union-attr]
                    share = math.prod(int(e) / int(shape[a]) for e, a in zip(ends, axes, strict=True))
            total += round(value.const_value.nbytes * share)
    return total


def _kept_axes(cuts: Sequence[ParameterCut], kept: Mapping[str, int]) -> dict[int, int]:
    return {cut.axis: cut.channels.size(kept[cut.conv]) for cut in cuts if cut.conv in kept}


def _narrow_grouped(node: ir.Node, cut_axes: Mapping[str, Mapping[int, int]]) -> None:
    groups = node.attributes.get_int("group", 1)
    weight = node.inputs[1] if node.op_type == "Conv" and groups > 1 else None
    while weight is not None and weight.producer() is not None:
        weight = weight.producer().inputs[0]  # type: ignore[union-attr]  # it is dequantized, or cast
    if weight is None:
        return
    axes, shape = cut_axes.get(str(weight.name), {}), weight.shape
    if 0 in axes and shape is not None:
        node.attributes["group"] = ir.AttrInt64("group", groups * axes[0] // int(shape.numpy()[0]))


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
    constants = [add_constant(graph, f"{value.name}.{name}", numbers) for name, numbers in bounds.items()]
    users = list(value.uses())
    cut = ir.node("Slice", [value, *constants])
    cut.outputs[0].name = f"{value.name}.cut"
    for user, position in users:
        user.replace_input_with(position, cut.outputs[0])
    graph.insert_before(graph[0], cut)


def _put_zeros(graph: ir.Graph, mark: ir.Node, options: Mapping[int, int]) -> None:
    """Replace the mark behind a tensor by the zeros that this branch lacks."""
    sizes, axis = mark.attributes["sizes"].as_ints(), mark.attributes["axis"].as_int()
    missing = sizes[-1] - sizes[options[mark.attributes["decision"].as_int()] - 1]
    if graph.opset_imports[""] < _PAD_TAKES_AXES:
        rank = mark.attributes["rank"].as_int()
        ends = [0] * (2 * rank)
        ends[rank + axis] = missing
        pads = add_constant(graph, f"{mark.outputs[0].name}_pads", ends)
        replace_node(mark, ir.node("Pad", [mark.inputs[0], pads]))
        return
    pads = add_constant(graph, f"{mark.outputs[0].name}_pads", [0, missing])
    axes = add_constant(graph, f"{mark.outputs[0].name}_axes", [axis])
    replace_node(mark, ir.node("Pad", [mark.inputs[0], pads, None, axes]))


def _drop_mark(graph: ir.Graph, mark: ir.Node) -> None:
    """What is marked is narrow in a branch, and goes on as it is."""
    if mark.inputs[0] is not None:
        ir.convenience.replace_all_uses_with(mark.outputs[0], mark.inputs[0])
        graph.remove(mark, safe=True)
