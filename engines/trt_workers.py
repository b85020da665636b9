"""Build engines in processes of their own, as many at once as cores and memory allow."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path

from rnp_deploy.engines.trt_cache import PlanCache
from rnp_deploy.engines.trt_graph import PieceGraph
from rnp_deploy.engines.trt_library import load_tensorrt
from rnp_deploy.engines.trt_network import BuildOptions, plan_from_graph
from rnp_deploy.errors import EngineError

__all__ = ["BuildTask", "build_all", "peak_bytes"]


@dataclass(frozen=True)
class BuildTask:
    """One engine to build into a cache.

    Attributes:
        graph: Of the piece.
        options: Checked.
        flavor: As for ``load_tensorrt``.
        key: Of the plan in the cache.
        cache: The cache's folder.
        device_key: Of the timing cache, or None: the flavor has none.
    """

    graph: PieceGraph
    options: BuildOptions
    flavor: str
    key: str
    cache: Path
    device_key: str | None


def peak_bytes(weight_bytes: int) -> int:
    """About how much memory the build of a piece takes, beside what a process has anyway."""
    return _FIXED_BYTES + _PER_WEIGHT_BYTE * weight_bytes


def build_all(tasks: Iterable[BuildTask], workers: int, memory_bytes: int) -> Iterator[None]:
    """Build; yields after each engine.

    Args:
        tasks: Taken one by one, since each holds weights.
        workers: Processes; 1: this one.
        memory_bytes: What the builds under way may take together by estimate; one always runs.

    Raises:
        EngineError: As :func:`plan_from_graph`, or a process died.
        OutputError: The cache cannot be written.
    """
    if workers == 1:
        for task in tasks:
            _build(task)
            yield
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_end_with_parent)
    running: dict[Future[None], int] = {}
    try:
        for task in tasks:
            needed = peak_bytes(len(task.graph.onnx))
            # One more than there are processes, so that none waits for its task.
            while running and (len(running) > workers or sum(running.values()) + needed > memory_bytes):
                yield from _finished(running)
            running[pool.submit(_build, task)] = needed
        while running:
            yield from _finished(running)
    except BrokenProcessPool as err:
        raise EngineError(
            "a process that built engines died, likely for want of memory; what is built is kept: run again "
            "with --workers 1, or a smaller --memory"
        ) from err
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(running: dict[Future[None], int]) -> Iterator[None]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        del running[future]
        future.result()
        yield


def _build(task: BuildTask) -> None:
    cache, library = PlanCache(task.cache), load_tensorrt(task.flavor)
    timing = None if task.device_key is None else cache.timings(task.device_key)
    plan, measured = plan_from_graph(library, task.graph, task.options, timing)
    if measured is not None and task.device_key is not None:
        cache.store_timings(task.device_key, measured)
    cache.store(task.key, plan)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            wait_for([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_FIXED_BYTES = 300 * 2**20
_PER_WEIGHT_BYTE = 4
