"""ONNX Runtime on the CPU: all sessions of a process share one thread pool."""

from __future__ import annotations

import functools
import logging
import threading
from typing import Any

from rnp_deploy.bundle.reading import Bundle
from rnp_deploy.engine import Arrays, OpenEngine
from rnp_deploy.errors import EngineError, InputError, MissingRuntimeError

__all__ = ["OrtEngine", "opener", "session_options"]

logger = logging.getLogger(__name__)

_pool_lock = threading.Lock()
_pool_threads: int | None = None


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
    """Make the function that opens a bundle's graphs as ONNX Runtime CPU sessions.

    Args:
        bundle: Verified; its graphs are parsed from the bytes that were hashed.
        threads: Threads that compute, or None for one per core. All sessions of a process
            share one pool, whose size is that of the first: later wishes for another size
            above 1 are logged and get that pool. 1 always means the calling thread alone.

    Raises:
        MissingRuntimeError: onnxruntime is not installed.
        InputError: ``threads`` is below 1.
    """
    options = session_options(threads)
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(bundle.path.resolve())
    )
    return functools.partial(_open, bundle, options)


def session_options(threads: int | None) -> Any:
    """Options for a session that computes with ``threads``; see :func:`opener`."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads is {threads!r}; pass an integer of at least 1, or None for one per core")
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings about graphs that were verified at export
    if threads == 1:
        options.intra_op_num_threads = 1
    else:
        _start_pool(ort, threads or 0)
        options.use_per_session_threads = False
    return options


def _open(bundle: Bundle, options: Any, path: str) -> OrtEngine:
    ort = _onnxruntime()
    where = f"{bundle.path}/{path}"
    try:
        session = ort.InferenceSession(bundle.graph(path), options, providers=["CPUExecutionProvider"])
    except Exception as err:  # pybind raises classes of its own that share no root
        raise EngineError(f"{where}: ONNX Runtime {ort.__version__} cannot load it: {err}") from err
    return OrtEngine(session, where)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as err:
        raise MissingRuntimeError(
            "ONNX Runtime is not installed; pip install 'rnp-deploy[cpu]', or 'rnp-deploy[gpu]', not both"
        ) from err
    return onnxruntime


def _start_pool(ort: Any, threads: int) -> None:
    """Size the process's pool once: ONNX Runtime cannot change it, and a pool a session spins."""
    global _pool_threads
    with _pool_lock:
        if _pool_threads is None:
            try:
                ort.set_global_thread_pool_sizes(threads, 1)
            except Exception as err:  # noqa: BLE001 - it only says that somebody else was first
                logger.warning("using the thread pool this process already has: %s", err)
            _pool_threads = threads
        elif threads not in (0, _pool_threads):
            logger.warning(
                "threads=%d asked for, but this process's pool was started with %s; using that pool",
                threads,
                _pool_threads or "one per core",
            )
