"""ONNX Runtime on the CPU: all sessions of a process share one thread pool.

With a pool of its own per session, every pool spins while another one works: 13 chained
sessions on 2 threads were measured to take 307 ms instead of 65. ONNX Runtime's shared pool
is one per process, cannot be resized, and once it exists refuses sessions that want their
own; ``threads=1`` needs no pool, and leaves the process as it is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rnp_deploy.engine import AnyArray, Arrays, OpenEngine
from rnp_deploy.errors import EngineError, InputError, MissingRuntimeError

__all__ = ["OrtEngine", "engine_from_onnx", "opener", "require_runtime", "session_options", "threads_in_use"]

logger = logging.getLogger(__name__)

_pool_lock = threading.Lock()
_pool_threads: int | None = None  # None: not started; 0: one per core
_told_of: set[int] = set()  # wishes that were not met, each told once
_allocator_shared: bool | None = None  # None: not tried yet


class OrtEngine:
    """One ONNX Runtime session."""

    def __init__(self, session: Any, where: str) -> None:
        self._session = session
        self._where = where
        self._input_types = {tensor.name: tensor.type for tensor in session.get_inputs()}
        self._output_types = {tensor.name: tensor.type for tensor in session.get_outputs()}
        self._outputs = list(self._output_types)

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

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """See :meth:`rnp_deploy.engine.Engine.bind`."""
        session = self._session
        if session is None:
            raise EngineError(f"{self._where} was bound after close")
        binding = session.io_binding()
        try:
            for name in dict.fromkeys([*inputs, *self._input_types]):
                value = _ort_value(name, inputs.get(name), self._input_types)
                binding.bind_ortvalue_input(name, value)
            for name, array in outputs.items():
                value = _ort_value(name, array, self._output_types, written=True)
                binding.bind_ortvalue_output(name, value)
        except Exception as err:  # pybind raises classes of its own that share no root
            raise EngineError(f"{self._where}: ONNX Runtime cannot bind it: {err}") from err
        return _bound_call(session, binding, self._where, (inputs, outputs))

    def close(self) -> None:
        """Drop the session."""
        self._session = None


class GraphSource(Protocol):
    """A verified bundle or engine set: graphs by path, and the folder of their weights."""

    @property
    def path(self) -> Path:
        """The directory."""

    def graph(self, path: str) -> bytes:
        """The verified bytes of one graph."""

    def check_unchanged(self) -> None:
        """Refuse files that were replaced after they were verified; raises IntegrityError."""


def opener(source: GraphSource, threads: int | None = None, *, optimised: bool = False) -> OpenEngine:
    """Make the function that opens the graphs of a bundle or engine set; see :func:`engine_from_onnx`.

    Raises:
        MissingRuntimeError, InputError: As there, before anything is opened.
    """
    _check_threads(threads)
    require_runtime()

    def open_engine(path: str) -> OrtEngine:
        where = f"{source.path}/{path}"
        engine = engine_from_onnx(source.graph(path), source.path, where, threads, optimised=optimised)
        source.check_unchanged()  # after its weights were read or mapped
        return engine

    return open_engine


def engine_from_onnx(
    graph: bytes, weights_folder: Path, where: str, threads: int | None = None, *, optimised: bool = False
) -> OrtEngine:
    """Open one ONNX graph as an ONNX Runtime CPU session.

    Args:
        graph: A serialised ModelProto, from a source that was checked.
        weights_folder: What its external weights are relative to.
        where: Names the graph in errors.
        threads: Threads that compute, or None for one per core. The first engine that
            wants more than one starts the process's pool; later ones use it whatever they
            ask for, and a differing number is logged once.
        optimised: Whether ONNX Runtime optimised the graph before, so that it is run as it is.

    Raises:
        MissingRuntimeError: onnxruntime is not installed, or too old.
        InputError: ``threads`` is below 1.
        EngineError: ONNX Runtime cannot load the graph.
    """
    ort = require_runtime()
    options = session_options(weights_folder, threads)
    if optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Packed copies of weights would be memory of its own for each of many engines.
        options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as err:  # pybind raises classes of its own that share no root
        raise EngineError(f"{where}: ONNX Runtime {ort.__version__} cannot load it: {err}") from err
    return OrtEngine(session, where)


def session_options(weights_folder: Path, threads: int | None) -> Any:
    """Options of a session in this process; raises as :func:`engine_from_onnx`."""
    _check_threads(threads)
    ort = require_runtime()
    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings about graphs that were verified at export
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(weights_folder.resolve())
    )
    if _uses_pool(ort, threads):
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = 1
    if _shares_allocator(ort):
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def require_runtime() -> Any:
    """The module ``onnxruntime``; raises MissingRuntimeError where there is none, or one too old."""
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


def threads_in_use() -> int | None:
    """What to ask for to change nothing: the pool's size (None: one per core), or 1 where there is none."""
    return 1 if _pool_threads is None else _pool_threads or None


def _bound_call(session: Any, binding: Any, where: str, arrays: Any) -> Callable[[], None]:
    # What the public method ends in: its checks for other devices cost more than a small graph.
    run, bound = (
        getattr(getattr(session, "_sess", None), "run_with_iobinding", None),
        getattr(binding, "_iobinding", None),
    )
    if run is None or bound is None:
        run, bound = session.run_with_iobinding, binding

    def call(kept_alive: Any = (session, binding, arrays)) -> None:
        try:
            run(bound, None)
        except Exception as err:  # pybind raises classes of its own that share no root
            raise EngineError(f"{where}: ONNX Runtime failed: {err}") from err

    return call


def _ort_value(name: str, array: AnyArray | None, types: Mapping[str, str], *, written: bool = False) -> Any:
    """An array of a tensor, on its memory; ONNX Runtime itself looks at names and types no sooner than it runs."""
    import onnxruntime as ort

    if name not in types:
        raise ValueError(f"it has no tensor {name!r} there, but {sorted(types)}")
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name!r} is given no array")
    if not array.flags.c_contiguous:
        raise ValueError(f"the array of {name!r} is not C-contiguous")
    if written and not array.flags.writeable:
        raise ValueError(f"the array of {name!r} is read-only")
    value = ort.OrtValue.ortvalue_from_numpy(array)
    if value.data_type() != types[name]:
        raise ValueError(f"the array of {name!r} is a {value.data_type()}; it takes a {types[name]}")
    return value


def _shares_allocator(ort: Any) -> bool:
    """Whether sessions can take scratch memory from one arena, instead of keeping one each."""
    global _allocator_shared
    with _pool_lock:
        if _allocator_shared is None:
            try:
                info = ort.OrtMemoryInfo(
                    "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
                )
                ort.create_and_register_allocator(info, ort.OrtArenaCfg(0, 1, -1, -1))
                _allocator_shared = True
            except Exception as err:  # noqa: BLE001 - then each session keeps its own
                logger.info("ONNX Runtime's sessions share no arena: %s", err)
                _allocator_shared = False
    return _allocator_shared


def _check_threads(threads: int | None) -> None:
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads is {threads!r}; pass an integer of at least 1, or None for one per core")


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
        elif wanted not in (0, _pool_threads, *_told_of):
            _told_of.add(wanted)
            logger.warning(
                "threads=%d asked for, but this process's pool was started with %s; using that pool",
                wanted,
                _pool_threads or "one per core",
            )
    return True
