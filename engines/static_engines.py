"""Static paths of a bundle as engines, where its controller computes: what a user would deploy instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

from rnp_deploy.bundle.engine_set import EngineSet
from rnp_deploy.bundle.reading import Bundle
from rnp_deploy.engine import Engine, OpenEngine
from rnp_deploy.engines.backends import Opened
from rnp_deploy.engines.static_graph import static_graph

__all__ = ["OpenStatic", "flavor_of", "static_opener", "static_plan"]

#: Options, one per decision → the engine of that path. Raises InputError, EngineError.
OpenStatic: TypeAlias = Callable[[Sequence[int]], Engine]


def static_opener(bundle: Bundle, opened: Opened, threads: int | None, batch: int) -> OpenStatic:
    """Make the function that opens static paths on the backend, device and memory of a controller.

    On the CPU they share the process's thread pool with it, on a GPU its stream.

    Args:
        bundle: Verified; of an engine set the one it was built from.
        opened: What the controller runs on.
        threads: As the controller was given them.
        batch: What TensorRT builds for; its engines take this many images at most.

    Raises:
        MissingRuntimeError: The runtime, or onnx, is not installed.
    """
    graphs: dict[str, bytes] = {}
    open_engine = _opener(replace(bundle, graphs=graphs), opened, threads, batch)

    def open_static(options: Sequence[int]) -> Engine:
        name = f"static/{'-'.join(map(str, options))}.onnx"
        graphs[name] = static_graph(bundle, options)
        with opened.memory.turn():
            return open_engine(name)

    return open_static


def flavor_of(opened: Opened) -> str:
    """Which TensorRT an engine set is for; ``"auto"`` of anything else."""
    graphs = opened.source.graphs
    return graphs.engines.fingerprint.get("flavor", "auto") if isinstance(graphs, EngineSet) else "auto"


def static_plan(source: Bundle, name: str, batch: int, library: Any) -> bytes:
    """A plan of TensorRT for one graph of a whole path and one batch size; raises EngineError."""
    from rnp_deploy.engines.engine_weights import BundleArrays
    from rnp_deploy.engines.trt_graph import Edge, piece_graph
    from rnp_deploy.engines.trt_network import BuildOptions, plan_from_graph

    first, last = source.manifest.inputs[0], source.manifest.outputs[0]
    ends = [(Edge(tensor.name, tensor.shape, tensor.dtype),) for tensor in (first, last)]
    graph = piece_graph(source, BundleArrays(source), name, name, ends[0], ends[1])
    return plan_from_graph(library, graph, BuildOptions(max_batch=batch, opt_batch=batch), None)[0]


def _opener(source: Bundle, opened: Opened, threads: int | None, batch: int) -> OpenEngine:
    """Of graphs that the source will have."""
    memory: Any = opened.memory
    if opened.backend == "tensorrt":
        return _tensorrt_opener(source, opened, batch)
    if opened.backend == "torch":
        from rnp_deploy.engines import torch_engine

        stream = None if opened.device == "cpu" else memory.stream
        return torch_engine.opener(source, opened.device, threads, stream=stream)
    if opened.device == "cuda":
        from rnp_deploy.engines import ort_cuda

        return ort_cuda.opener(source, memory)
    from rnp_deploy.engines import ort

    return ort.opener(source, threads)


def _tensorrt_opener(source: Bundle, opened: Opened, batch: int) -> OpenEngine:
    from rnp_deploy.engines import trt
    from rnp_deploy.engines.cuda_memory import CudaMemory
    from rnp_deploy.engines.trt_library import load_tensorrt

    library, plans = load_tensorrt(flavor_of(opened)), dict[str, bytes]()
    open_plan = trt.opener(replace(source, graphs=plans), library, cast("CudaMemory", opened.memory))

    def open_engine(name: str) -> Engine:
        plans[name] = static_plan(source, name, batch, library)
        return open_plan(name)

    return open_engine
