"""ONNX Runtime on the CPU: all sessions of a process share one thread pool.

With a pool of its own per session, every pool spins while another one works: 13 chained
sessions on 2 threads were measured to take 307 ms instead of 65. ONNX Runtime's shared pool
is one per process, cannot be resized, and once it exists refuses sessions that want their
own; ``threads=1`` needs no pool, and leaves the process as it is.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from rnp_deploy.bundle.reading import Bundle
from rnp_deploy.engine import Arrays, OpenEngine
from rnp_deploy.errors import EngineError, InputError, MissingRuntimeError

__all__ = ["OrtEngine", "engine_from_onnx", "opener", "threads_in_use"]

logger = logging.getLogger(__name__)

_pool_lock = threading.Lock()
_pool_threads: int | None = None  # None: not started; 0: one per core


class OrtEngine:
    """One ONNX Runtime session."""

    def __init__(self, session: Any, where: str) -> None:
        self._session = session
        self._where = where
        self._outputs = [output.name for output in session.get_outputs()]

    def run(self, feeds: Arrays) -> Arrays:
        """See :meth:`rnp_deploy.engine.Engine.run`."""
        session = self._session
        if session is None:
            raise EngineError(f"{self._where} was run after close")
        try:
            results = session.run(self._outputs, feeds)
        except Exception as err:  # pybind raises classes of its own that share no root
            raise EngineError(f"{self._where}: ONNX Runtime failed: {err}") from err
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Drop the session."""
        self._session = None


def opener(bundle: Bundle, threads: int | None = None) -> OpenEngine:
    """Make the function that opens a bundle's graphs; see :func:`engine_from_onnx`.

    Raises:
        MissingRuntimeError, InputError: As there, before anything is opened.
    """
    _check(threads)

    def open_engine(path: str) -> OrtEngine:
        bundle.check_unchanged()
        return engine_from_onnx(bundle.graph(path), bundle.path, f"{bundle.path}/{path}", threads)

    return open_engine


def engine_from_onnx(graph: bytes, weights_folder: Path, where: str, threads: int | None = None) -> OrtEngine:
    """Open one ONNX graph as an ONNX Runtime CPU session.

    Args:
        graph: A serialised ModelProto, from a source that was checked.
        weights_folder: What its external weights are relative to.
        where: Names the graph in errors.
        threads: Threads that compute, or None for one per core. The first engine that
            wants more than one starts the process's pool; later ones use it whatever they
            ask for, and a differing wish is logged.

    Raises:
        MissingRuntimeError: onnxruntime is not installed, or too old.
        InputError: ``threads`` is below 1.
        EngineError: ONNX Runtime cannot load the graph.
    """
    ort = _check(threads)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings about graphs that were verified at export
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(weights_folder.resolve())
    )
    if _uses_pool(ort, threads):
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as err:  # pybind raises classes of its own that share no root
        raise EngineError(f"{where}: ONNX Runtime {ort.__version__} cannot load it: {err}") from err
    return OrtEngine(session, where)


def threads_in_use() -> int | None:
    """What to ask for to change nothing: the pool's size (None: one per core), or 1 where there is none."""
    return 1 if _pool_threads is None else _pool_threads or None


def _check(threads: int | None) -> Any:
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads is {threads!r}; pass an integer of at least 1, or None for one per core")
    try:
        import onnxruntime as ort
    except ImportError as err:
        raise MissingRuntimeError(
            "ONNX Runtime is not installed; pip install 'rnp-deploy[cpu]', or 'rnp-deploy[gpu]', not both"
        ) from err
    if not hasattr(ort, "set_global_thread_pool_sizes"):
        raise MissingRuntimeError(
            f"ONNX Runtime {ort.__version__} is too old; pip install -U 'rnp-deploy[cpu]'"
        )
    return ort


def _uses_pool(ort: Any, threads: int | None) -> bool:
    """Whether a session has to use the process's pool; starts it where it is wanted."""
    global _pool_threads
    wanted = threads or 0
    with _pool_lock:
        if _pool_threads is None:
            if threads == 1:
                return False
            try:
                ort.set_global_thread_pool_sizes(wanted, 1)
            except Exception as err:  # noqa: BLE001 - it only says that somebody else was first
                logger.warning("using the thread pool this process already has: %s", err)
            _pool_threads = wanted
        elif wanted not in (0, _pool_threads):
            logger.warning(
                "threads=%d asked for, but this process's pool was started with %s; using that pool",
                wanted,
                _pool_threads or "one per core",
            )
    return True
