"""Memory of a GPU, and the one stream in whose order all that is done with it happens."""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnp_deploy.engines.cuda_driver import current_context, driver_call
from rnp_deploy.errors import DeviceError

__all__ = ["CudaMark", "CudaMemory", "DeviceArray"]

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the legacy stream
#: CU_STREAM_CAPTURE_MODE_RELAXED: memory that is freed meanwhile, when Python collects, voids no capture.
_CAPTURE_RELAXED = 2
#: Blocks are of this size, or a larger power of two: so that those that are free fit arrays of other row counts.
_BLOCK_BYTES = 512


@dataclass(frozen=True)
class DeviceArray:
    """C-contiguous values on the GPU.

    Attributes:
        pointer: Device address.
        shape: Of the values.
        dtype: numpy's; bfloat16 as its bits in uint16.
        owner: Holds the memory as long as this does.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Any

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry of axis 0."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """How torch and others take it, without a copy."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
        }

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> DeviceArray:
        """Neighbouring rows, on the same memory."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError("only neighbouring rows of a device array can be taken")
        shape = (max(0, stop - start), *self.shape[1:])
        return DeviceArray(self.pointer + start * self.row_bytes, shape, self.dtype, self.owner)

    def view(self, dtype: np.dtype[Any]) -> DeviceArray:
        """The bytes of a flat array as another type."""
        return DeviceArray(self.pointer, (self.nbytes // dtype.itemsize,), dtype, self.owner)

    def reshape(self, shape: Sequence[int]) -> DeviceArray:
        """The same values in another shape."""
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"values of shape {self.shape} cannot take shape {tuple(shape)}")
        return DeviceArray(self.pointer, tuple(shape), self.dtype, self.owner)


class CudaMark:
    """When all work before a moment in the stream's order was done; ``memory`` has to outlive it."""

    def __init__(self, event: int, memory: CudaMemory) -> None:
        self.event, self.memory = event, memory


class CudaMemory:
    """Arrays on the first GPU; see :class:`rnp_deploy.array_memory.ArrayMemory`.

    Freed blocks are kept for arrays of about the same size: giving them back to the driver would make it wait
    for the GPU. They may be used again at once, since all work is in the order of one stream.

    Attributes:
        stream: Its handle, for TensorRT, ONNX Runtime and torch to work in.
    """

    on_host = False

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._free: dict[int, list[int]] = {}
        self._events: list[int] = []  # of marks that are gone
        self._read: list[Any] = []  # host memory that is copied from until the stream was waited for
        handle = ctypes.c_void_p()
        with current_context():
            driver_call("cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
        self.stream: int = handle.value or 0
        _when_gone(self, _release, self._free, self._events, self.stream)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One thread at a time, in which the device's context is current."""
        with self._lock, current_context():
            yield

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> DeviceArray:
        """See :class:`rnp_deploy.array_memory.ArrayMemory`."""
        nbytes = max(1, math.prod(shape) * dtype.itemsize)
        size = max(_BLOCK_BYTES, 1 << (nbytes - 1).bit_length())
        block = _Block(self._taken(size), self)
        _when_gone(block, self._free.setdefault(size, []).append, block.pointer)
        return DeviceArray(block.pointer, tuple(shape), dtype, block)

    def _taken(self, size: int) -> int:
        with suppress(KeyError, IndexError):
            return self._free[size].pop()
        try:
            return _allocated(size)
        except DeviceError:
            self.give_back()
            return _allocated(size)

    def give_back(self) -> None:
        """Return the free blocks to the driver, for whoever else allocates on the device."""
        with current_context():
            _give_back(self._free)

    def host_empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Pinned; see :class:`rnp_deploy.array_memory.ArrayMemory`."""
        nbytes = max(1, math.prod(shape) * dtype.itemsize)
        pointer = ctypes.c_void_p()
        with current_context():
            driver_call("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(nbytes), 0)
        memory: Any = (ctypes.c_char * nbytes).from_address(pointer.value or 0)
        _when_gone(memory, _freed_host, pointer.value)
        array: NDArray[Any] = np.frombuffer(memory, dtype, math.prod(shape))
        return array.reshape(shape)

    def write(self, array: DeviceArray, value: ArrayLike | DeviceArray) -> None:
        """See :class:`rnp_deploy.array_memory.ArrayMemory`; ``value`` is held until the stream was waited for."""
        if isinstance(value, DeviceArray):
            self._read.append(value)
            self._copy("cuMemcpyDtoDAsync_v2", array.pointer, value.pointer, array.nbytes)
            return
        values = np.ascontiguousarray(np.broadcast_to(np.asarray(value, array.dtype), array.shape))
        self._read.append(values)
        self._copy("cuMemcpyHtoDAsync_v2", array.pointer, values.ctypes.data, array.nbytes)

    def to_host(self, array: DeviceArray | NDArray[Any]) -> NDArray[Any]:
        """See :class:`rnp_deploy.array_memory.ArrayMemory`."""
        if isinstance(array, np.ndarray):
            return array
        values = np.empty(array.shape, array.dtype)
        self.copy_to_host(array, values)
        self.synchronise()
        return values

    def copy_to_host(self, array: DeviceArray, values: NDArray[Any]) -> None:
        """Copy in the stream's order; ``values`` are there after :meth:`synchronise`."""
        self._copy("cuMemcpyDtoHAsync_v2", values.ctypes.data, array.pointer, array.nbytes)

    def beside_host(
        self, outputs: Mapping[str, Any]
    ) -> tuple[dict[str, DeviceArray], Callable[[], None] | None]:
        """Device arrays to compute into, where some outputs are wanted on the host.

        Args:
            outputs: Name → device array, or numpy array that is to be filled.

        Returns:
            Name → device array, and what copies to the host in the stream's order; None where nothing is wanted
            there.
        """
        wanted = {name: array for name, array in outputs.items() if isinstance(array, np.ndarray)}
        beside = {name: self.empty(array.shape, array.dtype) for name, array in wanted.items()}

        def copy() -> None:
            for name, array in wanted.items():
                self.copy_to_host(beside[name], array)

        return {**outputs, **beside}, copy if wanted else None

    def copy_rows(
        self,
        source: DeviceArray,
        rows: NDArray[np.intp],
        target: DeviceArray,
        target_rows: NDArray[np.intp],
    ) -> None:
        """See :class:`rnp_deploy.array_memory.ArrayMemory`; neighbours in both are one copy."""
        size = source.row_bytes
        parted = (np.diff(rows) != 1) | (np.diff(target_rows) != 1)
        starts = [0, *(np.flatnonzero(parted) + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            here = source.pointer + int(rows[start]) * size
            there = target.pointer + int(target_rows[start]) * size
            self._copy("cuMemcpyDtoDAsync_v2", there, here, (end - start) * size)

    def synchronise(self) -> None:
        """Wait until all work so far is done; raises DeviceError where some of it failed."""
        driver_call("cuStreamSynchronize", ctypes.c_void_p(self.stream))
        self._read.clear()

    def mark(self) -> CudaMark:
        """Mark this moment in the stream's order, in a :meth:`turn`, and not while a graph is captured.

        Events of marks that are gone are taken again, since to make one costs the host time.
        """
        with suppress(IndexError):
            return self._marked(self._events.pop())
        event = ctypes.c_void_p()
        driver_call("cuEventCreate", ctypes.byref(event), 0)
        return self._marked(event.value or 0)

    def _marked(self, event: int) -> CudaMark:
        mark = CudaMark(event, self)
        _when_gone(mark, self._events.append, event)
        driver_call("cuEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(self.stream))
        return mark

    def elapsed_ms(self, first: CudaMark, second: CudaMark) -> float:
        """Between two marks of this stream, by the device's clock, good to about 0.5 µs; waits for the second."""
        elapsed, event = ctypes.c_float(), ctypes.c_void_p(second.event)
        driver_call("cuEventSynchronize", event)
        driver_call("cuEventElapsedTime", ctypes.byref(elapsed), ctypes.c_void_p(first.event), event)
        return elapsed.value

    def timer(self) -> Callable[[], float]:
        """Start to time the stream; what is returned ends it, and gives milliseconds. Both take their own turn."""
        with self.turn():
            first = self.mark()

        def elapsed_ms() -> float:
            with self.turn():
                return self.elapsed_ms(first, self.mark())

        return elapsed_ms

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what a function does in the stream, as a CUDA graph.

        Args:
            work: Has run once before; makes no arrays and does not wait.

        Returns:
            What launches the graph; it works on the memory that ``work`` did, and keeps nothing of it.
        """
        stream, graph, ready = ctypes.c_void_p(self.stream), ctypes.c_void_p(), ctypes.c_void_p()
        driver_call("cuStreamBeginCapture_v2", stream, _CAPTURE_RELAXED)
        try:
            work()
        finally:
            driver_call("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            driver_call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        finally:
            driver_call("cuGraphDestroy", graph)
        launch = _Launch(ready, stream)
        _when_gone(launch, _freed_graph, ready.value)
        return launch

    def _copy(self, name: str, target: int, source: int, nbytes: int) -> None:
        stream = ctypes.c_void_p(self.stream)
        driver_call(name, ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(nbytes), stream)


class _Block:
    """Device memory that arrays hold; ``memory`` has to outlive it."""

    def __init__(self, pointer: int, memory: CudaMemory) -> None:
        self.pointer, self.memory = pointer, memory


class _Launch:
    def __init__(self, ready: ctypes.c_void_p, stream: ctypes.c_void_p) -> None:
        self._ready, self._stream = ready, stream

    def __call__(self) -> None:
        driver_call("cuGraphLaunch", self._ready, self._stream)


def _when_gone(owner: Any, release: Callable[..., Any], *what: Any) -> None:
    """Release something when its owner is collected; not at exit, where the process's end does it in the right order."""
    weakref.finalize(owner, release, *what).atexit = False


def _allocated(size: int) -> int:
    pointer = ctypes.c_void_p()
    with current_context():
        driver_call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
    return pointer.value or 0


def _give_back(free: dict[int, list[int]]) -> None:
    for pointers in free.values():
        while pointers:
            driver_call("cuMemFree_v2", ctypes.c_void_p(pointers.pop()))


def _release(free: dict[int, list[int]], events: list[int], stream: int) -> None:
    with suppress(DeviceError), current_context():  # the device may be lost
        _give_back(free)
        for event in events:
            driver_call("cuEventDestroy_v2", ctypes.c_void_p(event))
        driver_call("cuStreamDestroy_v2", ctypes.c_void_p(stream))


def _freed_host(pointer: int | None) -> None:
    with suppress(DeviceError), current_context():
        driver_call("cuMemFreeHost", ctypes.c_void_p(pointer))


def _freed_graph(ready: int | None) -> None:
    with suppress(DeviceError), current_context():
        driver_call("cuGraphExecDestroy", ctypes.c_void_p(ready))
