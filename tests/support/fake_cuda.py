"""A CUDA driver of plain Python: device memory is host memory, and a stream does nothing until it is waited for."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["FakeCuda", "use_fake_cuda"]

OUT_OF_MEMORY, INVALID_VALUE, INVALID_CONTEXT, LAUNCH_FAILED, CAPTURE_INVALID = 2, 1, 201, 719, 901
INVALID_HANDLE, NOT_READY = 400, 600
WORDS = {
    OUT_OF_MEMORY: b"out of memory",
    INVALID_VALUE: b"invalid argument",
    INVALID_CONTEXT: b"invalid device context",
    LAUNCH_FAILED: b"unspecified launch failure",
    INVALID_HANDLE: b"invalid resource handle",
    NOT_READY: b"device not ready",
    CAPTURE_INVALID: b"operation failed due to a previous error during capture",
}


class FakeCuda:
    """Functions of the driver API, by their names; each returns an error code.

    Attributes:
        blocks: Device address → its buffer.
        pinned: Host address → its buffer.
        limit_bytes: Device memory in all.
        lost: Whether every call fails from now on.
        refuses_capture: Whether a capture is invalid when it ends.
        graphs, launches: Graphs that live, and launches so far.
        device_ms: The device's clock, which work in the stream may move.
        events: Event → when the stream came to it, None until then.
    """

    def __init__(self, limit_bytes: int = 2**30) -> None:
        self.blocks: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.limit_bytes = limit_bytes
        self.lost = self.refuses_capture = False
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launches = self.allocations = self.waits = 0
        self.device_ms = 0.0
        self.events: dict[int, float | None] = {}
        self._queue: list[Callable[[], None]] = []
        self._captured: list[Callable[[], None]] | None = None
        self._contexts = threading.local()
        self._handles = 1000

    @property
    def used_bytes(self) -> int:
        return sum(len(block) for block in self.blocks.values())

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Put work into the stream, or into the graph that is being captured."""
        assert stream == 77, f"work in stream {stream}"
        (self._queue if self._captured is None else self._captured).append(work)

    def at(self, pointer: int, nbytes: int) -> Any:
        """Device memory as a writable buffer; an address outside of what was allocated is an AssertionError."""
        for start, block in self.blocks.items():
            if start <= pointer and pointer + nbytes <= start + len(block):
                return (ctypes.c_char * nbytes).from_address(pointer)
        raise AssertionError(f"{nbytes} bytes at {pointer:#x} are not device memory")

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = getattr(type(self), f"do_{name}", None)
        if function is None:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name == "cuGetErrorString":
                arguments[1]._obj.value = WORDS[arguments[0]]
                return 0
            if self.lost:
                return LAUNCH_FAILED
            if name not in WITHOUT_CONTEXT and not getattr(self._contexts, "depth", 0):
                return INVALID_CONTEXT
            return function(self, *arguments) or 0

        return call

    def do_cuDriverGetVersion(self, version):
        version._obj.value = 13000

    def do_cuDeviceGet(self, handle, index):
        handle._obj.value = index

    def do_cuDeviceGetName(self, name, size, handle):
        name.value = b"NVIDIA Stand-in"

    def do_cuDeviceTotalMem_v2(self, total, handle):
        total._obj.value = self.limit_bytes

    def do_cuDeviceGetAttribute(self, value, number, handle):
        value._obj.value = {16: 108, 75: 8, 76: 6}[number]

    def do_cuDevicePrimaryCtxRetain(self, context, handle):
        context._obj.value = 55

    def do_cuCtxPushCurrent_v2(self, context):
        assert context.value == 55
        self._contexts.depth = getattr(self._contexts, "depth", 0) + 1

    def do_cuCtxPopCurrent_v2(self, context):
        self._contexts.depth -= 1

    def do_cuGetErrorString(self, code, words):
        raise NotImplementedError

    def do_cuStreamCreate(self, handle, flags):
        assert flags == 1
        handle._obj.value = 77

    def do_cuStreamDestroy_v2(self, stream):
        assert stream.value == 77

    def do_cuStreamSynchronize(self, stream):
        assert stream.value == 77
        if self._captured is not None:
            return CAPTURE_INVALID
        self.waits += 1
        self._work_off()
        return 0

    def _work_off(self) -> None:
        queue, self._queue = self._queue, []
        for work in queue:
            work()

    def do_cuEventCreate(self, event, flags):
        assert flags == 0
        self._handles += 1
        self.events[self._handles] = None
        event._obj.value = self._handles

    def do_cuEventRecord(self, event, stream):
        assert self._captured is None, "an event within a capture has no time"
        if event.value not in self.events:
            return INVALID_HANDLE
        self.events[event.value] = None
        self.enqueue(stream.value, lambda: self.events.update({event.value: self.device_ms}))
        return 0

    def do_cuEventSynchronize(self, event):
        if event.value not in self.events:
            return INVALID_HANDLE
        self._work_off()
        return 0

    def do_cuEventElapsedTime(self, elapsed, first, second):
        if first.value not in self.events or second.value not in self.events:
            return INVALID_HANDLE
        start, end = self.events[first.value], self.events[second.value]
        if start is None or end is None:
            return NOT_READY
        elapsed._obj.value = end - start
        return 0

    def do_cuEventDestroy_v2(self, event):
        return 0 if self.events.pop(event.value, 0) != 0 else INVALID_HANDLE

    def do_cuMemAlloc_v2(self, pointer, nbytes):
        if self.used_bytes + nbytes.value > self.limit_bytes:
            return OUT_OF_MEMORY
        block = ctypes.create_string_buffer(b"\xa5" * nbytes.value, nbytes.value)  # not zeros
        self.blocks[ctypes.addressof(block)] = block
        self.allocations += 1
        pointer._obj.value = ctypes.addressof(block)
        return 0

    def do_cuMemFree_v2(self, pointer):
        return 0 if self.blocks.pop(pointer.value, None) is not None else INVALID_VALUE

    def do_cuMemGetInfo_v2(self, free, total):
        free._obj.value, total._obj.value = self.limit_bytes - self.used_bytes, self.limit_bytes

    def do_cuMemHostAlloc(self, pointer, nbytes, flags):
        block = ctypes.create_string_buffer(nbytes.value)
        self.pinned[ctypes.addressof(block)] = block
        pointer._obj.value = ctypes.addressof(block)

    def do_cuMemFreeHost(self, pointer):
        return 0 if self.pinned.pop(pointer.value, None) is not None else INVALID_VALUE

    def do_cuMemcpyHtoDAsync_v2(self, target, source, nbytes, stream):
        taken = ctypes.string_at(source.value, nbytes.value)  # as the driver takes pageable memory
        there = self.at(target.value, nbytes.value)
        self.enqueue(stream.value, lambda: ctypes.memmove(there, taken, len(taken)))

    def do_cuMemcpyDtoHAsync_v2(self, target, source, nbytes, stream):
        here, to, size = self.at(source.value, nbytes.value), target.value, nbytes.value
        self.enqueue(stream.value, lambda: ctypes.memmove(to, here, size))

    def do_cuMemcpyDtoDAsync_v2(self, target, source, nbytes, stream):
        here, there = self.at(source.value, nbytes.value), self.at(target.value, nbytes.value)
        self.enqueue(stream.value, lambda: ctypes.memmove(there, here, nbytes.value))

    def do_cuStreamBeginCapture_v2(self, stream, mode):
        assert mode == 2
        self._captured = []

    def do_cuStreamEndCapture(self, stream, graph):
        captured, self._captured = self._captured, None
        if self.refuses_capture:
            return CAPTURE_INVALID
        self._handles += 1
        self.graphs[self._handles] = captured or []
        graph._obj.value = self._handles
        return 0

    def do_cuGraphInstantiateWithFlags(self, ready, graph, flags):
        assert flags.value == 0
        self._handles += 1
        self.graphs[self._handles] = self.graphs[graph.value]
        ready._obj.value = self._handles

    def do_cuGraphDestroy(self, graph):
        del self.graphs[graph.value]

    def do_cuGraphExecDestroy(self, ready):
        del self.graphs[ready.value]

    def do_cuGraphLaunch(self, ready, stream):
        self.launches += 1
        for work in self.graphs[ready.value]:
            self.enqueue(stream.value, work)


WITHOUT_CONTEXT = {
    "cuDriverGetVersion", "cuDeviceGet", "cuDeviceGetName", "cuDeviceTotalMem_v2", "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2",
}  # fmt: skip


def use_fake_cuda(monkeypatch: Any, **settings: Any) -> FakeCuda:
    """Put a fake driver in the place of the machine's, for one test."""
    from rnp_deploy.engines import cuda_driver

    fake = FakeCuda(**settings)
    cuda_driver._primary_context.cache_clear()
    monkeypatch.setattr(cuda_driver, "_library", lambda: fake)
    return fake
