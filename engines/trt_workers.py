"""Build engines in processes of their own, as many at once as cores and memory allow.

TensorRT-RTX lists the outputs of an engine in an order that depends on their addresses. The same
piece becomes the same bytes where it is built at the same addresses: in a fork of a process that
has built nothing, whose addresses are not drawn at random, by a thread, since that has a heap of
its own, which begins where room was kept from the start.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rnp_deploy.engines.trt_cache import PlanCache
from rnp_deploy.engines.trt_graph import PieceGraph
from rnp_deploy.engines.trt_library import load_tensorrt
from rnp_deploy.engines.trt_network import BuildOptions, plan_from_graph
from rnp_deploy.errors import EngineError, RnpError

__all__ = ["BuildTask", "build_all", "peak_bytes"]

_ADDR_NO_RANDOMIZE = 0x0040000
_ROOM_BYTES = 2**32
#: All that workers see of the environment, besides CUDA's variables: the rest would move their memory.
_KEPT = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "PYTHONHOME")
#: What a process of TensorRT-RTX 1.7 takes before it builds, and for each byte of a graph; measured.
_PROCESS_BYTES, _PER_GRAPH_BYTE = 200 * 2**20, 5


@dataclass(frozen=True)
class BuildTask:
    """One engine to build, and its key in the cache."""

    graph: PieceGraph
    options: BuildOptions
    key: str


def peak_bytes(graph_bytes: int) -> int:
    """About how much memory the build of a piece takes, its process included."""
    return _PROCESS_BYTES + _PER_GRAPH_BYTE * graph_bytes


def build_all(
    tasks: Iterable[BuildTask],
    flavor: str,
    cache: PlanCache,
    device_key: str | None,
    limits: tuple[int, int],
) -> Iterator[None]:
    """Build into a cache; yields after each engine.

    Full TensorRT with one worker is driven from this process: another would start CUDA anew.

    Args:
        tasks: Taken one by one, since each holds weights.
        flavor: Of all of them.
        cache: Where plans go.
        device_key: Of the timing cache, or None: the flavor has none.
        limits: How many at once, and what they may take together by estimate, bytes; one always runs.

    Raises:
        EngineError: As :func:`plan_from_graph`, or a process died.
        OutputError: The cache cannot be written.
    """
    workers, memory_bytes = limits
    here = not hasattr(os, "fork") or (workers == 1 and flavor != "rtx")
    running: dict[Future[None], int] = {}
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[_Worker | _Here] = queue.SimpleQueue()
        for _ in range(1 if here else workers):
            idle.put(_Here(flavor) if here else stack.enter_context(_Worker(flavor)))

        def build(task: BuildTask) -> None:
            timing = None if device_key is None else cache.timings(device_key)
            worker = idle.get()
            try:
                plan, measured = worker.build(task.graph, task.options, timing)
            finally:
                idle.put(worker)
            cache.store(task.key, plan)
            if device_key is not None and measured is not None:
                cache.store_timings(device_key, measured)

        threads = stack.enter_context(ThreadPoolExecutor(idle.qsize()))
        for task in tasks:
            needed = peak_bytes(len(task.graph.onnx))
            while len(running) >= workers or (running and sum(running.values()) + needed > memory_bytes):
                yield from _finished(running)
            running[threads.submit(build, task)] = needed
        while running:
            yield from _finished(running)


def _finished(running: dict[Future[None], int]) -> Iterator[None]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        del running[future]
        future.result()
        yield


class _Here:
    """Builds in this process, and remembers what it timed."""

    def __init__(self, flavor: str) -> None:
        self._flavor = flavor
        self._timed = b""

    def build(
        self, graph: PieceGraph, options: BuildOptions, timing: bytes | None
    ) -> tuple[bytes, bytes | None]:
        """As :func:`plan_from_graph`; adds to ``timing`` what this process timed before."""
        timings = None if timing is None else [timing, self._timed]
        plan, timed = plan_from_graph(load_tensorrt(self._flavor), graph, options, timings)
        self._timed = timed or b""
        return plan, timed


class _Worker:
    """A process that builds what it is sent, until its input ends: so also when this one is killed."""

    def __init__(self, flavor: str) -> None:
        module = load_tensorrt(flavor).module
        command = (  # first the addresses, then TensorRT; only then what may differ from day to day
            f"import mmap; room = mmap.mmap(-1, {_ROOM_BYTES}, mmap.MAP_PRIVATE, mmap.PROT_READ)\n"
            f"import sys; sys.path.append({str(Path(module.__file__).parent.parent)!r})\n"
            f"import {module.__name__}\n"
            f"sys.path[:] = {[str(Path(entry).absolute()) for entry in sys.path]!r}\n"
            "import site; site.main()\n"
            f"from rnp_deploy.engines.trt_workers import serve; serve({flavor!r}, room)"
        )
        with _fixed_addresses():
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Always the same: what is not moves the memory.
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=_environment(),
                start_new_session=True,  # an interrupt is for this process, which then ends its input
            )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]  # both are pipes
        self._process.wait()

    def build(
        self, graph: PieceGraph, options: BuildOptions, timing: bytes | None
    ) -> tuple[bytes, bytes | None]:
        """As :func:`plan_from_graph`; also an EngineError where the process dies."""
        requests, answers = self._process.stdin, self._process.stdout
        try:
            _send(requests, pickle.dumps((graph, options, timing)))  # type: ignore[arg-type]  # a pipe
            answer = pickle.loads(_received(answers))  # type: ignore[arg-type]  # of our own process
        except (OSError, EOFError) as err:
            raise EngineError(
                f"{graph.where}: the process that built it died, likely for want of memory; what is built is "
                "kept: run again with --workers 1"
            ) from err
        if isinstance(answer, Exception):
            raise answer
        plan, timed = answer
        return plan, timed


def serve(flavor: str, room: mmap.mmap) -> None:
    """What a worker does: build what comes in on stdin, and answer on stdout.

    Args:
        flavor: As for ``load_tensorrt``.
        room: Addresses that nothing took so far, for the heap in which an engine is built.
    """
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a library prints gets among the answers
    requests = os.fdopen(0, "rb", buffering=0)
    load_tensorrt(flavor)
    builder = _Here(flavor)
    while requests.read(1):
        if flavor != "rtx":
            _answer(builder, requests, answers)
        elif (child := os.fork()) == 0:
            room.close()
            thread = threading.Thread(target=_answer, args=(builder, requests, answers))
            thread.start()
            thread.join()
            os._exit(0)
        elif os.waitpid(child, 0)[1] != 0:
            return  # the end of the answers tells


def _answer(builder: _Here, requests: IO[bytes], answers: IO[bytes]) -> None:
    answer: object
    try:
        answer = builder.build(*pickle.loads(_received(requests, begun=True)))
    except RnpError as err:
        answer = err
    except Exception:  # noqa: BLE001 - a bug keeps its traceback
        answer = RuntimeError(traceback.format_exc())
    _send(answers, pickle.dumps(answer))


def _send(stream: IO[bytes], data: bytes) -> None:
    """A mark, the length in eight bytes, the data."""
    stream.write(b"." + len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def _received(stream: IO[bytes], *, begun: bool = False) -> bytearray:
    """What was sent; ``begun``: the mark was read."""
    head = _exactly(stream, 8 if begun else 9)
    return _exactly(stream, int.from_bytes(head[-8:], "little"))


def _exactly(stream: IO[bytes], count: int) -> bytearray:
    data = bytearray(count)
    left = memoryview(data)
    while left:
        read = stream.readinto(left)  # type: ignore[attr-defined]
        if not read:
            raise EOFError
        left = left[read:]
    return data


def _environment() -> dict[str, str]:
    """No threads before the fork, and large blocks of memory in the heap, not wherever there is room."""
    kept = {
        name: value for name, value in sorted(os.environ.items()) if name in _KEPT or name.startswith("CUDA_")
    }
    settings = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**25), "PYTHONHASHSEED": "0"}
    return kept | settings


@contextlib.contextmanager
def _fixed_addresses() -> Iterator[None]:
    """Programs started meanwhile have their memory at the same addresses every time, where Linux allows it."""
    personality: Any = getattr(ctypes.CDLL(None), "personality", None)
    before = -1 if personality is None else personality(0xFFFFFFFF)
    if before == -1:
        yield
        return
    personality(before | _ADDR_NO_RANDOMIZE)
    try:
        yield
    finally:
        personality(before)
