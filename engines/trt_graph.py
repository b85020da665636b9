"""A graph of a bundle as TensorRT's parser takes it: weights inside, cuts made, edges of the plan's types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from rnp_deploy.bundle.reading import Bundle
from rnp_deploy.engine import AnyArray
from rnp_deploy.engines.engine_weights import BundleArrays
from rnp_deploy.engines.graph_joining import needed_nodes
from rnp_deploy.errors import EngineError

__all__ = ["Edge", "PieceGraph", "piece_graph"]

_TYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "int32": onnx.TensorProto.INT32,
    "int64": onnx.TensorProto.INT64,
}
#: What one message of Protocol Buffers can hold.
_MOST_BYTES = 2**31 - 2**20


@dataclass(frozen=True)
class Edge:
    """An input or output of a piece.

    Attributes:
        name: In the graph.
        shape: Without the batch; ``(C, H, W)`` also where channels lie last in memory.
        dtype: As in :class:`rnp_deploy.plan.PlanTensor`.
        channels_last: Whether memory is ``[N, H, W, C]``, C rounded up to 8 (TensorRT's HWC8).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    channels_last: bool = False


@dataclass(frozen=True)
class PieceGraph:
    """A piece to build.

    Attributes:
        where: Names it in errors: stage, options and file.
        onnx: A serialised ModelProto without external data.
        inputs, outputs: All of them; the batch is ``N`` in the graph.
        dtypes: The floating types of its edges and weights, and ``"int8"`` where it quantises.
    """

    where: str
    onnx: bytes
    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]
    dtypes: frozenset[str]


def piece_graph(
    bundle: Bundle,
    arrays: BundleArrays,
    file: str,
    where: str,
    inputs: tuple[Edge, ...],
    outputs: tuple[Edge, ...],
) -> PieceGraph:
    """Make one graph of a bundle self-contained.

    Cuts (``Slice``) of weights are made, ``Identity`` nodes that only rename are gone, and an
    output that the plan has as int32 is cast, since TensorRT 8 has no other integer outputs.

    Args:
        bundle: Verified.
        arrays: Of it.
        file: The graph's path in it.
        where: Names the piece in errors.
        inputs: All that the graph has.
        outputs: Those that are wanted; what only others need is left out.

    Raises:
        EngineError: Types do not fit at a node, or an edge is not as the plan has it.
    """
    model = onnx.ModelProto.FromString(bundle.graph(file))
    graph = model.graph
    _check_types(model, where)
    weights = _cut_weights(graph, arrays.of(model))
    _drop_renames(graph)
    for edge in outputs:
        _cast_output(graph, edge)
    _check_edges(graph, inputs, outputs, where)
    made = onnx.ModelProto(ir_version=model.ir_version, producer_name="rnp-deploy")
    made.opset_import.extend(opset for opset in model.opset_import if not opset.domain)
    made.graph.name = "piece"
    made.graph.input.extend(_value_info(edge) for edge in inputs)
    made.graph.output.extend(_value_info(edge) for edge in outputs)
    for node in needed_nodes(graph.node, [edge.name for edge in outputs]):
        node.ClearField("metadata_props")
        made.graph.node.append(node)
    used = {name: weights[name] for node in made.graph.node for name in node.input if name in weights}
    size = sum(array.nbytes for _, array in used.values())
    if size > _MOST_BYTES:
        raise EngineError(
            f"{where}: its weights take {size / 1e9:.1f} GB; TensorRT's parser reads up to 2.1 GB"
        )
    for name, (kind, array) in used.items():
        made.graph.initializer.add(name=name, data_type=kind, dims=array.shape, raw_data=array.tobytes())
    kinds = {kind for kind, _ in used.values()}
    types = {name for name, kind in _TYPES.items() if kind in kinds} | {e.dtype for e in (*inputs, *outputs)}
    dtypes = {name for name in types if "float" in name}
    if any(node.op_type == "QuantizeLinear" for node in made.graph.node):
        dtypes.add("int8")
    return PieceGraph(where, made.SerializeToString(deterministic=True), inputs, outputs, frozenset(dtypes))


def _check_types(model: onnx.ModelProto, where: str) -> None:
    """Refuse a node whose inputs are of types that do not go together: TensorRT 8 would cast in silence."""
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True)
    except onnx.shape_inference.InferenceError as err:
        raise EngineError(
            f"{where}: types do not fit: {err}; export the bundle again, in one precision"
        ) from err


def _cut_weights(graph: onnx.GraphProto, arrays: Mapping[str, AnyArray]) -> dict[str, tuple[int, AnyArray]]:
    """Every initializer and every cut of one: name → ONNX type and values; the cuts' nodes are taken out."""
    weights = {tensor.name: (tensor.data_type, arrays[tensor.name]) for tensor in graph.initializer}
    for node in list(graph.node):
        if node.op_type == "Slice" and all(name in weights for name in node.input if name):
            kind, array = weights[node.input[0]]
            given = [weights[name][1].tolist() if name else [] for name in node.input[1:]]
            starts, ends, axes, steps = (*given, [], [])[:4]
            cut = [slice(None)] * array.ndim
            for i, axis in enumerate(axes or range(len(starts))):
                cut[axis] = slice(starts[i], ends[i], steps[i] if steps else None)
            weights[node.output[0]] = (kind, array[tuple(cut)])
            graph.node.remove(node)
    return weights


def _drop_renames(graph: onnx.GraphProto) -> None:
    """Take out ``Identity`` nodes, but for those from an input to an output."""
    ends = {info.name for info in (*graph.input, *graph.output)}
    weights = {tensor.name for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Identity"]:
        source, target = node.input[0], node.output[0]
        if target in ends:
            if source in ends or source in weights:
                continue
            source, target = target, source  # the name on the edge stays
        graph.node.remove(node)
        for other in graph.node:
            for names in (other.input, other.output):
                names[:] = [source if name == target else name for name in names]


def _cast_output(graph: onnx.GraphProto, edge: Edge) -> None:
    """Where the plan has int32 and the graph int64, as the agent's option is: cast it."""
    info = next((info for info in graph.output if info.name == edge.name), None)
    if edge.dtype != "int32" or info is None or info.type.tensor_type.elem_type != onnx.TensorProto.INT64:
        return
    inner = f"{edge.name}_int64"
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [inner if name == edge.name else name for name in names]
    cast = onnx.helper.make_node("Cast", [inner], [edge.name], f"cast_{edge.name}", to=onnx.TensorProto.INT32)
    graph.node.append(cast)
    info.type.tensor_type.elem_type = onnx.TensorProto.INT32


def _check_edges(
    graph: onnx.GraphProto, inputs: tuple[Edge, ...], outputs: tuple[Edge, ...], where: str
) -> None:
    for edges, infos in ((inputs, graph.input), (outputs, graph.output)):
        found = {info.name: _described(info) for info in infos}
        for edge in edges:
            if found.get(edge.name) != (_TYPES[edge.dtype], *edge.shape):
                raise EngineError(
                    f"{where}: {edge.name!r} is not {edge.dtype} [N, {', '.join(map(str, edge.shape))}] in the "
                    "graph, as the manifest says; export the bundle again"
                )
    unknown = sorted({info.name for info in graph.input} - {edge.name for edge in inputs})
    if unknown:
        raise EngineError(f"{where}: nothing gives its input {unknown[0]!r}; export the bundle again")


def _described(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Element type and shape without the batch."""
    kind = info.type.tensor_type
    return (kind.elem_type, *(dim.dim_value for dim in list(kind.shape.dim)[1:]))


def _value_info(edge: Edge) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(edge.name, _TYPES[edge.dtype], ["N", *edge.shape])
