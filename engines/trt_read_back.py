"""Whether TensorRT made what it was asked for: inputs, outputs, and the types it computes in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import onnx

from rnp_deploy.engines.trt_graph import Edge, PieceGraph
from rnp_deploy.engines.trt_library import DTYPES, TensorRt, said_by, tensorrt_logger
from rnp_deploy.errors import EngineError

__all__ = ["check_engine", "check_layers", "check_network", "format_mask"]

#: How descriptions of layers, which differ from version to version, call a type.
_DESCRIBED = {"float16": ("fp16", "half"), "bfloat16": ("bf16", "bfloat16"), "int8": ("int8",)}


def format_mask(trt: Any, edge: Edge) -> int:
    """The one format that an edge may have."""
    return 1 << int(trt.TensorFormat.HWC8 if edge.channels_last else trt.TensorFormat.LINEAR)


def check_network(library: TensorRt, edges: Iterable[tuple[Edge, Any]], graph: PieceGraph) -> None:
    """Refuse a network whose inputs and outputs are of other types, shapes or formats; raises EngineError.

    Args:
        library: Loaded.
        edges: Each with its tensor of the network.
        graph: Of the piece.
    """
    for edge, tensor in edges:
        got = (tensor.dtype.name, tuple(tensor.shape), int(tensor.allowed_formats))
        _compare(library, graph, edge, got, format_mask(library.module, edge))


def check_layers(network: Any, graph: PieceGraph) -> None:
    """Refuse a network whose convolutions are not of the types of their weights; raises EngineError."""
    model = onnx.ModelProto.FromString(graph.onnx).graph
    names = {
        onnx.TensorProto.FLOAT: "FLOAT",
        onnx.TensorProto.FLOAT16: "HALF",
        onnx.TensorProto.BFLOAT16: "BF16",
    }
    weights = {weight.name: names.get(weight.data_type) for weight in model.initializer}
    asked = {weights.get(node.input[1]) for node in model.node if node.op_type == "Conv"}
    if None in asked:  # quantised, and of the type that its scales are of
        return
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    got = {layer.get_output(0).dtype.name for layer in layers if layer.type.name == "CONVOLUTION"}
    if got != asked:
        raise EngineError(
            f"{graph.where}: its convolutions became {sorted(got)} and not {sorted(map(str, asked))}; load the bundle "
            "with another backend"
        )


def check_engine(library: TensorRt, plan: bytes, graph: PieceGraph) -> None:
    """Load a plan on the GPU that it was built on, and compare it; raises EngineError."""
    trt = library.module
    engine = trt.Runtime(tensorrt_logger(library)).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{graph.where}: {library.name} cannot load what it built: {said_by(library)}")
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    for edges, mode in ((graph.inputs, "INPUT"), (graph.outputs, "OUTPUT")):
        _check_names(library, graph, edges, [n for n in names if engine.get_tensor_mode(n).name == mode])
        for edge in edges:
            made = 1 << int(engine.get_tensor_format(edge.name))
            got = (engine.get_tensor_dtype(edge.name).name, tuple(engine.get_tensor_shape(edge.name)), made)
            _compare(library, graph, edge, got, format_mask(trt, edge))
    layers = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON).lower()
    for name, words in _DESCRIBED.items():
        if name in graph.dtypes and not any(word in layers for word in words):
            raise EngineError(
                f"{graph.where}: the bundle is of {name} and no layer that {library.name} made is; load the bundle "
                "with another backend"
            )


def _check_names(library: TensorRt, graph: PieceGraph, edges: Sequence[Edge], names: Sequence[str]) -> None:
    asked = sorted(edge.name for edge in edges)
    if sorted(names) != asked:
        raise EngineError(
            f"{graph.where}: {library.name} made {sorted(names)} of {asked}; load the bundle instead"
        )


def _compare(
    library: TensorRt, graph: PieceGraph, edge: Edge, got: tuple[str, tuple[int, ...], int], mask: int
) -> None:
    asked = (DTYPES[edge.dtype], (-1, *edge.shape), mask)
    if got != asked:
        raise EngineError(
            f"{graph.where}: {edge.name!r} became {got} and not {asked} (type, shape, format) in {library.name}; "
            "load the bundle with another backend"
        )
