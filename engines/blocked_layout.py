"""Tensors between pieces in ONNX Runtime's blocked layout, without reorders at every edge.

On x86 ONNX Runtime computes convolutions on channels in blocks of 8 or 16 (NCHWc), and gives a
graph's inputs and outputs in plain NCHW: a chain of graphs reorders each tensor twice. Here every
input passes a marker convolution while ONNX Runtime optimises the graph, so that all behind it is
laid out as it would be inside one static graph, a sum with a shortcut fused into its convolution
included; then the markers and the reorders at the edges are taken out, and the edges are blocked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from rnp_deploy.engines.ort import require_runtime, session_options, threads_in_use
from rnp_deploy.errors import EngineError

__all__ = [
    "MarkedGraph",
    "block_size",
    "in_blocks",
    "in_place_inputs",
    "marked_graph",
    "optimised",
    "with_blocked_edges",
]

_NCHWC = "com.microsoft.nchwc"
_MARK = "mark/"


@dataclass(frozen=True)
class MarkedGraph:
    """An optimised graph whose inputs are still marked.

    Attributes:
        model: As ONNX Runtime saved it.
        reads_blocked: Inputs that something in it takes blocked.
        makes_blocked: Outputs that it makes blocked, and reorders.
    """

    model: onnx.ModelProto
    reads_blocked: frozenset[str]
    makes_blocked: frozenset[str]


def marked_graph(
    model: onnx.ModelProto, inputs: Collection[str], weights_folder: Path, where: str
) -> MarkedGraph:
    """Mark inputs ``[N, C, H, W]`` and let ONNX Runtime optimise the graph.

    Args:
        model: Changed.
        inputs: Names of inputs of it.
        weights_folder: Of its external weights.
        where: Names the graph in errors.

    Raises:
        EngineError: ONNX Runtime cannot load it.
    """
    graph = model.graph
    markers = []
    for info in graph.input:
        if info.name not in inputs:
            continue
        mark, channels = _MARK + info.name, info.type.tensor_type.shape.dim[1].dim_value
        for node in graph.node:
            node.input[:] = [mark if name == info.name else name for name in node.input]
        weight = numpy_helper.from_array(np.ones((channels, 1, 1, 1), np.float32), f"{mark}/weight")
        graph.initializer.append(weight)
        markers.append(
            helper.make_node(
                "Conv", [info.name, weight.name], [mark], name=mark, group=channels, kernel_shape=[1, 1]
            )
        )
        # An output is never fused away, nor is what is read behind it fused into its maker.
        output = graph.output.add()
        output.CopyFrom(info)
        output.name = mark
    nodes = [*markers, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    done = optimised(model, weights_folder, where)
    maker = _makers(done.graph)
    reads = {
        name
        for name in inputs
        if _is_blocked(maker[_MARK + name]) and _blocked_readers(done.graph, maker, name)
    }
    makes = {
        info.name for info in done.graph.output
        if not info.name.startswith(_MARK) and len(info.type.tensor_type.shape.dim) == 4
        and _is_blocked(maker.get(info.name))
    }  # fmt: skip
    return MarkedGraph(done, frozenset(reads), frozenset(makes))


def optimised(model: onnx.ModelProto, weights_folder: Path, where: str) -> onnx.ModelProto:
    """The graph as ONNX Runtime would run it on this machine; raises EngineError."""
    ort = require_runtime()
    with tempfile.TemporaryDirectory() as folder:
        options = session_options(weights_folder, threads_in_use())
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as err:  # pybind raises classes of its own that share no root
            raise EngineError(f"{where}: ONNX Runtime {ort.__version__} cannot optimise it: {err}") from err
        return onnx.load(options.optimized_model_filepath, load_external_data=False)


def with_blocked_edges(marked: MarkedGraph, blocked: Collection[str], block: int) -> onnx.ModelProto:
    """Take the markers out, and the reorders at those edges that stay blocked.

    Args:
        marked: Changed.
        blocked: Names of the edges that are blocked; all its outputs among them are in
            ``makes_blocked``.
        block: Channels in a block.
    """
    graph = marked.model.graph
    for info in [info for info in graph.output if info.name.startswith(_MARK)]:
        _take_marker_out(graph, info.name, info.name.removeprefix(_MARK) in blocked)
        graph.output.remove(info)
    for info in graph.output:
        if info.name in blocked:
            _leave_blocked(graph, info.name)
    for info in (*graph.input, *graph.output):
        if info.name in blocked:
            channels = info.type.tensor_type.shape.dim[1]
            channels.dim_value = in_blocks(channels.dim_value, block)
    _skip_pooled_reorders(graph, block)
    _put_in_order(graph)
    return marked.model


def in_place_inputs(model: onnx.ModelProto) -> dict[str, str]:
    """Output → the input it is added to in place, where nothing reads that input any later."""
    graph = model.graph
    inputs = {info.name for info in graph.input}
    makers = _makers(graph)
    found = {}
    for info in graph.output:
        maker = makers[info.name]
        if maker.domain != _NCHWC or maker.op_type != "Conv" or len(maker.input) != 4:
            continue
        added = maker.input[3]
        before = set(_ancestors(maker, makers))
        readers = [node.output[0] for node in graph.node if added in node.input]
        if added in inputs and before.issuperset(set(readers) - {info.name}) and added not in maker.input[:3]:
            found[info.name] = added
    return found


def block_size(weights_folder: Path) -> int:
    """Channels in a block here; 1 where ONNX Runtime knows no blocked layout."""
    ends = [helper.make_tensor_value_info(name, 1, ["N", 3, 4, 4]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "probe", ends[:1], ends[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    probed = optimised(model, weights_folder, "a probe").graph
    if all(node.domain != _NCHWC for node in probed.node):
        return 1
    return int(max(tensor.dims[0] for tensor in probed.initializer if len(tensor.dims) == 4))


def in_blocks(channels: int, block: int) -> int:
    """Channels of a blocked tensor: rounded up to whole blocks."""
    return -(-channels // block) * block


def _makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in graph.node for output in node.output if output}


def _is_blocked(maker: onnx.NodeProto | None) -> bool:
    return maker is not None and maker.domain == _NCHWC and maker.op_type == "ReorderOutput"


def _blocked_readers(graph: onnx.GraphProto, maker: dict[str, onnx.NodeProto], name: str) -> bool:
    inside = maker[_MARK + name].input[0]
    return any(inside in node.input and node.output[0] != _MARK + name for node in graph.node)


def _take_marker_out(graph: onnx.GraphProto, mark: str, edge_is_blocked: bool) -> None:
    """Leave what the marker stood for: the edge as it is, reordered where that is needed."""
    name = mark.removeprefix(_MARK)
    makers = _makers(graph)
    last = makers[mark]
    if not _is_blocked(last):  # the marker stayed a plain convolution
        graph.node.remove(last)
        if edge_is_blocked:
            channels = helper.get_node_attr_value(last, "group")
            graph.node.append(
                helper.make_node(
                    "ReorderOutput", [name], [mark], domain=_NCHWC, channels=channels, channels_last=0
                )
            )
        else:
            _rename_input(graph, mark, name)
        return
    marker = makers[last.input[0]]
    reorder = makers[marker.input[0]]
    graph.node.remove(marker)
    if edge_is_blocked:
        graph.node.remove(reorder)
        _rename_input(graph, marker.output[0], name)
        if all(mark not in node.input for node in graph.node):
            graph.node.remove(last)
    else:
        graph.node.remove(last)
        _rename_input(graph, mark, name)
        if any(marker.output[0] in node.input for node in graph.node):
            _rename_input(graph, marker.output[0], reorder.output[0])
        else:
            graph.node.remove(reorder)


def _leave_blocked(graph: onnx.GraphProto, name: str) -> None:
    """Give an output as it is before its reorder; what reads it plain keeps the reorder."""
    reorder = _makers(graph)[name]
    inside = reorder.input[0]
    plain = f"{name}/plain"
    if any(name in node.input for node in graph.node):
        _rename_input(graph, name, plain)
        reorder.output[0] = plain
    else:
        graph.node.remove(reorder)
    for node in graph.node:
        node.output[:] = [name if output == inside else output for output in node.output]
    _rename_input(graph, inside, name)


def _skip_pooled_reorders(graph: onnx.GraphProto, block: int) -> None:
    """Of one pixel, blocks of channels are channels: where none is padded there is nothing to reorder."""
    makers = _makers(graph)
    outputs = {info.name for info in graph.output}
    for node in list(graph.node):
        if not _is_blocked(node):
            continue
        pooled = makers.get(node.input[0])  # None: an edge that is blocked, and read plain here
        if pooled is None or pooled.op_type != "GlobalAveragePool":
            continue
        channels = helper.get_node_attr_value(node, "channels")
        if channels % block == 0 and node.output[0] not in outputs:
            graph.node.remove(node)
            _rename_input(graph, node.output[0], node.input[0])


def _put_in_order(graph: onnx.GraphProto) -> None:
    """Order and name nodes by what the outputs need; drop the rest. ONNX Runtime's order differs from run to run."""
    makers = _makers(graph)
    nodes: list[onnx.NodeProto] = []
    seen: set[str] = set()
    for info in graph.output:
        waiting = [(info.name, False)]
        while waiting:
            name, inputs_are_made = waiting.pop()
            node = makers.get(name)
            if node is None:
                continue
            node_name = next(output for output in node.output if output)
            if inputs_are_made:
                nodes.append(node)
                node.name = node_name
            elif node_name not in seen:
                seen.add(node_name)
                waiting.append((name, True))
                waiting.extend((source, False) for source in reversed(node.input))
    used = {name for node in nodes for name in node.input}
    kept = sorted((t for t in graph.initializer if t.name in used), key=lambda tensor: tensor.name)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def _rename_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        if old in node.input:
            node.input[:] = [new if name == old else name for name in node.input]


def _ancestors(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> Iterator[str]:
    """The first outputs of all nodes a node depends on."""
    waiting, seen = list(node.input), set()
    while waiting:
        name = waiting.pop()
        if name in makers and name not in seen:
            seen.add(name)
            yield makers[name].output[0]
            waiting.extend(makers[name].input)
