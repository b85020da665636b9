"""One piece → one TensorRT plan: parse, configure, build, and read back what came out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx

from rnp_deploy.engines.trt_graph import Edge, PieceGraph
from rnp_deploy.engines.trt_library import DTYPES, TensorRt, said_by, tensorrt_logger
from rnp_deploy.engines.trt_read_back import check_engine, check_layers, check_network, format_mask
from rnp_deploy.errors import EngineError

__all__ = ["BuildOptions", "compute_capabilities", "plan_from_graph"]

logger = logging.getLogger(__name__)

#: Libraries beside TensorRT whose kernels it may take; those of TensorRT 10 and later need none.
_EXTERNAL_TACTICS = ("CUBLAS", "CUBLAS_LT", "CUDNN")


@dataclass(frozen=True)
class BuildOptions:
    """What all engines of a set are built with.

    Attributes:
        max_batch: The largest batch that an engine takes.
        opt_batch: The batch whose time is made short.
        workspace_bytes: Scratch memory that a kernel may ask for.
        external_tactics: Whether kernels of cuBLAS and cuDNN may be taken, where TensorRT knows them.
        compute_capabilities: What TensorRT-RTX builds for, as ``"8.6"``; empty: its own choice.
    """

    max_batch: int = 8
    opt_batch: int = 1
    workspace_bytes: int = 2**30
    external_tactics: bool = True
    compute_capabilities: tuple[str, ...] = ()


def plan_from_graph(
    library: TensorRt, graph: PieceGraph, options: BuildOptions, timings: Sequence[bytes] | None
) -> tuple[bytes, bytes | None]:
    """Build one engine.

    Full TensorRT needs a GPU, TensorRT-RTX does not. Types are those of the ONNX where the
    library is strongly typed; TensorRT 8 is told which ones it may take. TF32 is off, so that
    fp32 means the same as on the CPU.

    Args:
        library: Loaded.
        graph: Of the piece.
        options: Checked.
        timings: Timing caches, empty ones and some of other devices among them; None: use none.

    Returns:
        The serialised plan, and the timing cache with what was measured now.

    Raises:
        EngineError: An operator is not supported, or the engine is not what was asked for;
            the message names the piece.
    """
    trt, builder = library.module, _builder(library)
    _check_supported(library, graph)
    network = builder.create_network(_network_flags(library))
    network.name = "piece"  # else it is called by a running number, and the plan differs
    _parse(library, network, graph)
    edges = _edges_of(network, graph)
    for edge, tensor in edges:
        tensor.allowed_formats = format_mask(trt, edge)
    config = _config(library, builder, graph, options)
    if timings is not None:
        _use_timings(config, timings)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{graph.where}: {library.name} cannot build it: {said_by(library)}")
    check_network(library, edges, graph)
    if library.strongly_typed:  # else TensorRT chooses among the types it may take
        check_layers(network, graph)
    if library.flavor == "tensorrt":  # TensorRT-RTX builds where it cannot load
        check_engine(library, bytes(plan), graph)
    measured = config.get_timing_cache() if timings is not None else None
    return bytes(plan), None if measured is None else bytes(measured.serialize())


@cache
def _builder(library: TensorRt) -> Any:
    """One a process: it holds the library's tables of kernels."""
    builder = library.module.Builder(tensorrt_logger(library))
    if builder is None:
        raise EngineError(f"{library.name} cannot make a builder: {said_by(library)}")
    return builder


def _network_flags(library: TensorRt) -> int:
    known = library.module.NetworkDefinitionCreationFlag
    return 1 << int(known.STRONGLY_TYPED if library.strongly_typed else known.EXPLICIT_BATCH)


def _check_supported(library: TensorRt, graph: PieceGraph) -> None:
    """Of types: whether this version knows them at all."""
    unknown = [
        name for name in graph.dtypes if not hasattr(library.module.DataType, DTYPES.get(name, "FLOAT"))
    ]
    if unknown:
        raise EngineError(
            f"{graph.where}: {library.name} has no {unknown[0]}; export the bundle with --precision fp16 or fp32"
        )


def _parse(library: TensorRt, network: Any, graph: PieceGraph) -> None:
    parser = library.module.OnnxParser(network, tensorrt_logger(library))
    if parser.parse(graph.onnx):
        return
    nodes = onnx.ModelProto.FromString(graph.onnx).graph.node
    errors = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        index = error.node()
        node = f"node {nodes[index].name!r} ({nodes[index].op_type}): " if 0 <= index < len(nodes) else ""
        errors.append(node + " ".join(str(error.desc()).split()))
    raise EngineError(
        f"{graph.where}: {library.name} cannot take {'; '.join(errors) or said_by(library)}; "
        "exclude the layer from pruning, export with another --opset, or load the bundle with another backend"
    )


def _edges_of(network: Any, graph: PieceGraph) -> list[tuple[Edge, Any]]:
    """Each edge and the network's tensor of that name; raises EngineError where the names differ."""
    pairs = []
    for edges, count, get in (
        (graph.inputs, network.num_inputs, network.get_input),
        (graph.outputs, network.num_outputs, network.get_output),
    ):
        tensors = {tensor.name: tensor for tensor in (get(i) for i in range(count))}
        if set(tensors) != {edge.name for edge in edges}:
            raise EngineError(
                f"{graph.where}: the network has {sorted(tensors)} where the graph has "
                f"{sorted(edge.name for edge in edges)}; this is a bug of rnp-build"
            )
        pairs += [(edge, tensors[edge.name]) for edge in edges]
    return pairs


def _config(library: TensorRt, builder: Any, graph: PieceGraph, options: BuildOptions) -> Any:
    trt, config = library.module, builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.clear_flag(trt.BuilderFlag.TF32)
    if not library.strongly_typed:
        for name, flag in (("float16", "FP16"), ("int8", "INT8")):
            if name in graph.dtypes:
                config.set_flag(getattr(trt.BuilderFlag, flag))
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX: so that calls can be captured
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(config, "max_aux_streams"):
        config.max_aux_streams = 0  # one stream runs everything, and is recorded
    if not options.external_tactics:
        outside = [getattr(trt.TacticSource, name, None) for name in _EXTERNAL_TACTICS]
        mask = sum(1 << int(source) for source in outside if source is not None)
        config.set_tactic_sources(config.get_tactic_sources() & ~mask)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.compute_capabilities:
        known = compute_capabilities(library)
        config.num_compute_capabilities = len(options.compute_capabilities)
        for i, name in enumerate(options.compute_capabilities):
            config.set_compute_capability(known[name], i)
    profile = builder.create_optimization_profile()
    for edge in graph.inputs:
        batches = (1, options.opt_batch, options.max_batch)
        profile.set_shape(edge.name, *((batch, *edge.shape) for batch in batches))
    config.add_optimization_profile(profile)
    return config


def compute_capabilities(library: TensorRt) -> Mapping[str, Any]:
    """What TensorRT-RTX can build for: ``"8.6"`` → its own value."""
    known = getattr(library.module, "ComputeCapability", None)
    names = {} if known is None else dict(known.__members__)
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in names.items() if name.startswith("SM")}


def _use_timings(config: Any, timings: Sequence[bytes]) -> None:
    """Start from earlier measurements; those of another device or version are left, with a warning."""
    cache = config.create_timing_cache(b"")
    for timing in filter(None, timings):
        other = config.create_timing_cache(timing)
        if other is None or not cache.combine(other, ignore_mismatch=False):
            logger.warning("a timing cache is of another device or TensorRT; its kernels are timed again")
    config.set_timing_cache(cache, ignore_mismatch=False)
