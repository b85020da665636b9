"""TensorRT: engines of a set on the GPU, each branch a CUDA graph.

Written against the APIs of TensorRT 8.5, 10.3 to 11 and TensorRT-RTX; run so far against stand-ins alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnp_deploy.dtypes import storage_dtype
from rnp_deploy.engine import Arrays, OpenEngine
from rnp_deploy.engines.cuda_memory import CudaMemory, DeviceArray
from rnp_deploy.engines.ort import GraphSource
from rnp_deploy.engines.trt_library import DTYPES, TensorRt, in_eights, said_by, tensorrt_logger
from rnp_deploy.errors import EngineError

__all__ = ["TrtEngine", "opener"]

logger = logging.getLogger(__name__)

#: TensorRT's name of a type → ours.
_TYPES = {theirs: ours for ours, theirs in DTYPES.items()}


def opener(engines: GraphSource, library: TensorRt, memory: CudaMemory) -> OpenEngine:
    """Make the function that opens the engines of a set.

    Args:
        engines: Of a verified set, built for this device and this TensorRT.
        library: Loaded; the driver was looked at before.
        memory: Of the device; its stream runs all engines.

    Raises:
        EngineError: TensorRT cannot make a runtime here.
    """
    with memory.turn():
        runtime = library.module.Runtime(tensorrt_logger(library))
    if runtime is None:
        raise EngineError(f"{library.name} cannot make a runtime on this device: {said_by(library)}")
    scratch = _Scratch(memory)

    def open_engine(path: str) -> TrtEngine:
        where = f"{engines.path}/{path}"
        plan = engines.graph(path)  # its hash is checked here, before TensorRT sees it
        with memory.turn():
            engine = _made(memory, lambda: runtime.deserialize_cuda_engine(plan))
            if engine is None:
                raise EngineError(
                    f"{where}: {library.name} cannot load it: {said_by(library)}; out of GPU memory: pass "
                    "memory_budget_bytes; else build the engine set again"
                )
            return TrtEngine(library, engine, where, scratch)

    return open_engine


class _Scratch:
    """Activation memory of all engines: they run one after another in one stream, so one buffer serves."""

    def __init__(self, memory: CudaMemory) -> None:
        self.memory = memory
        self._buffer: DeviceArray | None = None

    def of(self, nbytes: int) -> DeviceArray:
        """A buffer of at least this size; calls made with an earlier, smaller one go on with that."""
        if self._buffer is None or self._buffer.nbytes < nbytes:
            least = 0 if self._buffer is None else 2 * self._buffer.nbytes
            self._buffer = self.memory.empty((max(nbytes, least, 1),), np.dtype(np.uint8))
        return self._buffer


@dataclass(frozen=True)
class _Tensor:
    """An input or output: ``shape`` ``[N, ...]`` as the network has it, -1 for N; ``eights``: HWC8."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_input: bool
    eights: bool

    def in_memory(self, batch: int) -> tuple[int, ...]:
        if not self.eights:
            return (batch, *self.shape[1:])
        _, channels, height, width = self.shape
        return batch, height, width, in_eights(channels)


class TrtEngine:
    """One TensorRT engine. Its calls are for one thread at a time, in the memory's turn.

    Attributes:
        inputs: Name → shape, -1 for what is free, and type.
    """

    def __init__(self, library: TensorRt, engine: Any, where: str, scratch: _Scratch) -> None:
        self._library, self._engine, self._where, self._scratch = library, engine, where, scratch
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._tensors = {name: _tensor(engine, name) for name in names}
        self.inputs = {name: (t.shape, t.dtype) for name, t in self._tensors.items() if t.is_input}
        self._unbound: _Context | None = None

    def run(self, feeds: Arrays) -> Arrays:
        """See :meth:`rnp_deploy.engine.Engine.run`; of device arrays."""
        if self._unbound is None:
            self._unbound = self._context()
        outputs = self._outputs(len(next(iter(feeds.values()))), besides=())
        self._unbound.put({**feeds, **outputs})
        self._unbound.enqueue()
        self._unbound.let_go()
        return outputs  # type: ignore[return-value]  # device arrays

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """See :meth:`rnp_deploy.engine.Engine.bind`; of device arrays, outputs also of the host.

        The first call runs the engine and records it as a CUDA graph; later ones launch the graph.
        """
        memory = self._scratch.memory
        computed, copy = memory.beside_host(outputs)
        # A context of its own: what a graph recorded must not change under it.
        context = self._context()
        spare = self._outputs(len(next(iter(inputs.values()))), besides=computed)
        context.put({**inputs, **computed, **spare})
        launch: Callable[[], None] | None = None

        def work() -> None:
            context.enqueue()
            if copy is not None:
                copy()

        def call() -> None:
            nonlocal launch
            if launch is None:
                work()
                memory.synchronise()
                launch = _captured(memory, work, self._where)
                return
            launch()
            if copy is not None:
                memory.synchronise()

        return call

    def close(self) -> None:
        """Drop the engine; bound calls hold it until they are dropped too."""
        self._engine = self._unbound = None

    def _outputs(self, batch: int, besides: Container[str]) -> dict[str, DeviceArray]:
        """New arrays for the outputs, but for those there are."""
        return {
            name: self._scratch.memory.empty(tensor.in_memory(batch), tensor.dtype)
            for name, tensor in self._tensors.items()
            if not tensor.is_input and name not in besides
        }

    def _context(self) -> _Context:
        if self._engine is None:
            raise EngineError(f"{self._where} was run after close")
        return _Context(self._library, self._engine, self._where, self._scratch, self._tensors)


class _Context:
    """An execution context with its memory; it holds the arrays it was given."""

    def __init__(
        self, library: TensorRt, engine: Any, where: str, scratch: _Scratch, tensors: Mapping[str, _Tensor]
    ) -> None:
        module = library.module
        self._library = library
        self._where, self._tensors, self._stream = where, tensors, scratch.memory.stream
        before_10 = not hasattr(module, "ExecutionContextAllocationStrategy")
        nbytes = engine.device_memory_size if before_10 else engine.device_memory_size_v2
        self._context = _made(scratch.memory, lambda: _context_of(engine, module))
        if self._context is None:
            raise EngineError(
                f"{where}: {library.name} cannot make an execution context: {said_by(library)}; out of GPU memory: "
                "pass memory_budget_bytes, or build with a smaller --max-batch"
            )
        self._buffer = scratch.of(nbytes)
        if hasattr(self._context, "set_device_memory"):
            self._context.set_device_memory(self._buffer.pointer, self._buffer.nbytes)
        else:
            self._context.device_memory = self._buffer.pointer
        self._arrays: dict[str, Any] = {}

    def put(self, arrays: Mapping[str, Any]) -> None:
        """Point every tensor at an array."""
        if set(arrays) != set(self._tensors):
            raise EngineError(
                f"{self._where}: it has tensors {sorted(self._tensors)} and is given {sorted(arrays)}"
            )
        for name, array in arrays.items():
            tensor, batch = self._tensors[name], len(array)
            if tuple(array.shape) != tensor.in_memory(batch) or array.dtype != tensor.dtype:
                raise EngineError(
                    f"{self._where}: the array of {name!r} is {array.dtype} {tuple(array.shape)}; "
                    f"it takes {tensor.dtype} {tensor.in_memory(batch)}"
                )
            fits = not tensor.is_input or self._context.set_input_shape(name, (batch, *tensor.shape[1:]))
            if not fits or not self._context.set_tensor_address(name, array.pointer):
                raise EngineError(
                    f"{self._where}: {self._library.name} does not take {name!r} in a batch of {batch}: "
                    f"{said_by(self._library)}"
                )
        self._arrays = dict(arrays)

    def let_go(self) -> None:
        """Hold the arrays no longer: what uses them after this does so later in the stream."""
        self._arrays = {}

    def enqueue(self) -> None:
        """Run in the stream; raises EngineError."""
        if not self._context.execute_async_v3(self._stream):
            raise EngineError(
                f"{self._where}: {self._library.name} failed to run it: {said_by(self._library)}"
            )


def _made(memory: CudaMemory, make: Callable[[], Any]) -> Any:
    """What TensorRT makes; it gives None where device memory is short, and then is asked again with more of it free."""
    made = make()
    if made is None:
        memory.give_back()
        made = make()
    return made


def _context_of(engine: Any, module: Any) -> Any:
    """A context on memory of ours."""
    if not hasattr(module, "ExecutionContextAllocationStrategy"):  # TensorRT 8
        return engine.create_execution_context_without_device_memory()
    ours = module.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(module, "DynamicShapesKernelSpecializationStrategy"):
        return engine.create_execution_context(ours)
    # TensorRT-RTX: the kernels that a graph records are to be the last ones.
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(ours)
    config.dynamic_shapes_kernel_specialization_strategy = (
        module.DynamicShapesKernelSpecializationStrategy.EAGER
    )
    return engine.create_execution_context(config)


def _tensor(engine: Any, name: str) -> _Tensor:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _TYPES:
        raise EngineError(
            f"tensor {name!r} of an engine is {kind}, which bundles do not have; build it again"
        )
    return _Tensor(
        shape=tuple(engine.get_tensor_shape(name)),
        dtype=storage_dtype(_TYPES[kind]),
        is_input=engine.get_tensor_mode(name).name == "INPUT",
        eights=engine.get_tensor_format(name).name == "HWC8",
    )


def _captured(memory: CudaMemory, work: Callable[[], None], where: str) -> Callable[[], None]:
    try:
        return memory.captured(work)
    except EngineError as err:  # slower, and as right
        logger.warning("%s is run without a CUDA graph: %s", where, err)
        return work
