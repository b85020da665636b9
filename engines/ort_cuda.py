"""ONNX Runtime on a CUDA GPU: tensors stay on the device, and nothing falls back to the CPU.

Written against ONNX Runtime's documented API; it awaits its first run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from rnp_deploy.dtypes import storage_dtype
from rnp_deploy.engine import Arrays, OpenEngine
from rnp_deploy.engines.cuda_memory import CudaMemory, DeviceArray
from rnp_deploy.engines.ort import GraphSource, require_runtime, session_options
from rnp_deploy.errors import EngineError, MissingRuntimeError

__all__ = ["OrtCudaEngine", "engine_from_onnx", "opener"]

_PROVIDER = "CUDAExecutionProvider"
#: Many sessions and row counts: none is worth a search over all algorithms, and arenas take what is asked for.
_SETTINGS = {"cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
_REMEDY = "its log says which library of CUDA or cuDNN is missing or too old, where that is why; device='cpu' asks for the CPU"
#: ONNX Runtime's name of a type → ours, and its number in ONNX.
_TYPES = {
    "tensor(float)": ("float32", 1),
    "tensor(int32)": ("int32", 6),
    "tensor(int64)": ("int64", 7),
    "tensor(float16)": ("float16", 10),
    "tensor(bfloat16)": ("bfloat16", 16),
}


def opener(source: GraphSource, memory: CudaMemory) -> OpenEngine:
    """Make the function that opens the graphs of a bundle on the GPU.

    Raises:
        MissingRuntimeError: onnxruntime is not installed, or built without CUDA.
    """
    _check_installed()

    def open_engine(path: str) -> OrtCudaEngine:
        engine = engine_from_onnx(source, path, memory)
        source.check_unchanged()  # after its weights were read
        return engine

    return open_engine


def engine_from_onnx(source: GraphSource, path: str, memory: CudaMemory) -> OrtCudaEngine:
    """Open one graph of a bundle; raises EngineError where any of it would run on the CPU."""
    ort = require_runtime()
    options = session_options(source.path, threads=1)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    where = f"{source.path}/{path}"
    # TF32 would make float32 another thing than on the CPU.
    settings = {"device_id": "0", "user_compute_stream": str(memory.stream), "use_tf32": "0", **_SETTINGS}
    provider = (_PROVIDER, settings)
    with memory.turn():
        try:
            session = ort.InferenceSession(
                source.graph(path), options, providers=[provider], enable_fallback=0
            )
        except Exception as err:  # pybind raises classes of its own that share no root
            raise EngineError(
                f"{where}: ONNX Runtime {ort.__version__} cannot run all of it on the GPU; {_REMEDY}: {err}"
            ) from err
    if session.get_providers()[:1] != [_PROVIDER]:
        raise EngineError(f"{where}: ONNX Runtime {ort.__version__} would run it on the CPU; {_REMEDY}")
    return OrtCudaEngine(ort, session, where, memory)


class OrtCudaEngine:
    """One session on the GPU. Its calls are for one thread at a time, in the memory's turn."""

    def __init__(self, ort: Any, session: Any, where: str, memory: CudaMemory) -> None:
        self._session, self._where, self._memory = session, where, memory
        self._inputs = {tensor.name: tensor.type for tensor in session.get_inputs()}
        self._outputs = {tensor.name: tensor.type for tensor in session.get_outputs()}
        self._options = ort.RunOptions()
        # What follows is in the same stream: nobody has to wait for it.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def run(self, feeds: Arrays) -> Arrays:
        """See :meth:`rnp_deploy.engine.Engine.run`; of device arrays."""
        binding = self._bound(feeds, {})
        for name in self._outputs:
            binding.bind_output(name, "cuda")
        self._call(binding)
        values = zip(self._outputs, binding.get_outputs(), strict=True)
        return {name: self._array(name, value) for name, value in values}  # type: ignore[misc]  # on the device

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """See :meth:`rnp_deploy.engine.Engine.bind`; of device arrays, outputs also of the host."""
        computed, copy = self._memory.beside_host(outputs)
        binding = self._bound(inputs, computed)

        def call(kept_alive: Any = (inputs, computed)) -> None:
            self._call(binding)
            if copy is not None:
                copy()
                self._memory.synchronise()

        return call

    def close(self) -> None:
        """Drop the session."""
        self._session = None

    def _bound(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Any:
        if self._session is None:
            raise EngineError(f"{self._where} was run after close")
        binding = self._session.io_binding()
        try:
            for name, array in inputs.items():
                binding.bind_input(*_place(name, array, self._inputs))
            for name, array in outputs.items():
                binding.bind_output(*_place(name, array, self._outputs))
        except Exception as err:  # pybind raises classes of its own that share no root
            raise EngineError(f"{self._where}: ONNX Runtime cannot bind it: {err}") from err
        return binding

    def _call(self, binding: Any) -> None:
        session = self._session
        if session is None:
            raise EngineError(f"{self._where} was run after close")
        try:
            session.run_with_iobinding(binding, self._options)
        except Exception as err:  # pybind raises classes of its own that share no root
            raise EngineError(f"{self._where}: ONNX Runtime failed: {err}") from err

    def _array(self, name: str, value: Any) -> DeviceArray:
        if self._outputs[name] not in _TYPES:
            raise EngineError(
                f"{self._where}: its output {name!r} is {self._outputs[name]}, which is not fetched"
            )
        dtype = storage_dtype(_TYPES[self._outputs[name]][0])
        return DeviceArray(value.data_ptr(), tuple(value.shape()), dtype, value)


def _place(
    name: str, array: DeviceArray, types: Mapping[str, str]
) -> tuple[str, str, int, int, tuple[int, ...], int]:
    """What ``bind_input`` and ``bind_output`` take: name, device, its number, type, shape, address."""
    if name not in types:
        raise ValueError(f"it has no tensor {name!r} there, but {sorted(types)}")
    ours, number = _TYPES[types[name]]
    if array.dtype != storage_dtype(ours):
        raise ValueError(f"the array of {name!r} is {array.dtype}; it takes {ours}")
    return name, "cuda", 0, number, array.shape, array.pointer


def _check_installed() -> None:
    ort = require_runtime()
    if _PROVIDER in ort.get_available_providers():
        return
    installed = {str(d.metadata["Name"]).lower() for d in metadata.distributions()}
    both = {"onnxruntime", "onnxruntime-gpu"} <= installed
    raise MissingRuntimeError(
        f"ONNX Runtime {ort.__version__} here is built without CUDA; "
        + (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: remove both, then "
            "pip install 'rnp-deploy[gpu]'"
            if both
            else "pip uninstall onnxruntime, then pip install 'rnp-deploy[gpu]'"
        )
    )
