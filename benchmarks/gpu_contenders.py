"""The controller and the static graphs of one bundle on any backend, images and all where the backend computes.

What is timed begins with images in the backend's memory and ends with the outputs on the host, for all contenders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnp_deploy import Controller
from rnp_deploy.bundle.engine_set import read_engines
from rnp_deploy.bundle.reading import Bundle, open_bundle
from rnp_deploy.engine import OpenEngine
from rnp_deploy.engines.backends import Opened, open_backend
from rnp_deploy.engines.cuda_memory import CudaMemory
from rnp_deploy.engines.static_graph import static_graph
from rnp_deploy.memory import resident_bytes

Images = NDArray[np.float32]
Run = Callable[[], Any]


@dataclass(frozen=True)
class Place:
    """A backend on a device, for one bundle; ``engines`` is the engine set of TensorRT's."""

    backend: str
    device: str
    folder: Path
    engines: Path | None = None

    def open(self) -> Subject:
        """Raises RnpError where the backend cannot be used here."""
        path = self.folder / "bundle" if self.engines is None else self.engines
        opened = open_backend(path, self.backend, self.device, 1 if self.device == "cpu" else None, "")
        return Subject(self, opened, open_bundle(self.folder / "bundle"))


class Subject:
    """An open backend: its controller, and static graphs in the same memory and stream."""

    def __init__(self, place: Place, opened: Opened, bundle: Bundle) -> None:
        self.place, self.memory, self.bundle = place, opened.memory, bundle
        self._opened = opened
        self.controller = Controller(
            bundle.manifest,
            opened.open_engine,
            plan=opened.source.plan,
            memory=opened.memory,
            max_batch=opened.max_batch,
        )

    def keep(self, images: Images) -> Any:
        """Images in the backend's memory."""
        with self.memory.turn():
            kept = self.memory.empty(images.shape, images.dtype)
            self.memory.write(kept, images)
        return kept

    def deciding(self, images: Any, penalty: float) -> Callable[[], tuple[Any, NDArray[np.int64]]]:
        """The controller with its agent; gives outputs and options."""
        prices = np.full(len(images), penalty, np.float32)
        options = np.zeros((len(images), len(self.bundle.manifest.decisions)), np.int64)

        def run() -> tuple[Any, NDArray[np.int64]]:
            # Below Controller.run, which takes and checks images on the host.
            made = self.controller._runner.run(images, prices, options, deciding=True)
            return made.outputs, options

        return run

    def static(self, images: Any, path: Sequence[int]) -> Run:
        """The static graph of a path; gives its outputs."""
        manifest, memory = self.bundle.manifest, self.memory
        name = f"static/{'-'.join(map(str, path))}.onnx"
        graphs = {**self.bundle.graphs, name: static_graph(self.bundle, path)}
        source = replace(self.bundle, graphs=graphs)
        with memory.turn():
            engine = self._opener(source, name, len(images))(name)
            fed = memory.empty(images.shape, images.dtype)
            made = memory.host_empty((len(images), *manifest.outputs[0].shape), np.dtype(np.float32))
            bound = engine.bind({manifest.inputs[0].name: fed}, {manifest.outputs[0].name: made})

        def run() -> Any:
            with memory.turn():
                memory.write(fed, images)
                bound()
            return made

        return run

    def _opener(self, source: Bundle, name: str, batch: int) -> OpenEngine:
        """Of the static graphs in a source."""
        if self.place.engines is not None:
            flavor = read_engines(self.place.engines).fingerprint["flavor"]
            return _tensorrt_opener(source, name, batch, self.memory, flavor)
        if self.place.backend == "torch":
            from rnp_deploy.engines import torch_engine

            if self.place.device == "cpu":
                return torch_engine.opener(source, "cpu", 1)
            return torch_engine.opener(source, "cuda", stream=self.memory.stream)
        if self.place.device == "cuda":
            from rnp_deploy.engines import ort_cuda

            return ort_cuda.opener(source, self.memory)
        from rnp_deploy.engines import ort

        return ort.opener(source, 1)

    def used_bytes(self) -> int:
        """Memory that is taken: of the whole device, or of this process where it computes."""
        if self.place.device == "cpu":
            return resident_bytes() or 0
        return device_bytes_used()


def device_bytes_used() -> int:
    """Of the first GPU, by all its processes."""
    import ctypes

    from rnp_deploy.engines.cuda_driver import current_context, driver_call

    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with current_context():
        driver_call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value


def static_plan(source: Bundle, name: str, batch: int, library: Any) -> bytes:
    """A plan of TensorRT for one static graph and one batch size."""
    from rnp_deploy.engines.engine_weights import BundleArrays
    from rnp_deploy.engines.trt_graph import Edge, piece_graph
    from rnp_deploy.engines.trt_network import BuildOptions, plan_from_graph

    first, last = source.manifest.inputs[0], source.manifest.outputs[0]
    ends = [(Edge(tensor.name, tensor.shape, tensor.dtype),) for tensor in (first, last)]
    graph = piece_graph(source, BundleArrays(source), name, name, ends[0], ends[1])
    return plan_from_graph(library, graph, BuildOptions(max_batch=batch, opt_batch=batch), None)[0]


def _tensorrt_opener(source: Bundle, name: str, batch: int, memory: CudaMemory, flavor: str) -> OpenEngine:
    from rnp_deploy.engines import trt
    from rnp_deploy.engines.trt_library import load_tensorrt

    library = load_tensorrt(flavor)
    plans = replace(source, graphs={name: static_plan(source, name, batch, library)})
    return trt.opener(plans, library, memory)
