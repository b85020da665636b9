"""Sessions as ONNX Runtime has them on CUDA, over the fake driver: computed by ONNX Runtime's CPU provider."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import onnxruntime as ort

from fake_cuda import FakeCuda

__all__ = ["CudaSessions"]

NUMBERS = {1: np.float32, 6: np.int32, 7: np.int64, 10: np.float16}
NAMES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16}


class CudaSessions:
    """Stands in for ``onnxruntime.InferenceSession``.

    Attributes:
        made: The provider options of each session.
        starts: Whether the CUDA provider starts; else sessions have the CPU's alone.
    """

    def __init__(self, cuda: FakeCuda, *, starts: bool = True) -> None:
        self.cuda, self.starts = cuda, starts
        self.made: list[dict[str, str]] = []
        self._real = ort.InferenceSession

    def __call__(self, graph: bytes, options: Any, providers: Any, enable_fallback: int) -> Session:
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        self.made.append(providers[0][1])
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
        return Session(self._real(graph, options, providers=["CPUExecutionProvider"]), self)


class Session:
    def __init__(self, session: Any, sessions: CudaSessions) -> None:
        self.session, self.cuda, self.starts = session, sessions.cuda, sessions.starts
        self.get_inputs, self.get_outputs = session.get_inputs, session.get_outputs

    def get_providers(self) -> list[str]:
        return [*(["CUDAExecutionProvider"] if self.starts else []), "CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        entry = options.get_run_config_entry("disable_synchronize_execution_providers")
        assert entry == "1", "every call would wait for the device"
        binding.run()


class Binding:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.values: list[Value] = []

    def bind_input(self, name, device, number, kind, shape, pointer):
        self.inputs[name] = self._memory(device, number, kind, shape, pointer)

    def bind_output(self, name, device, number=0, kind=None, shape=None, pointer=None):
        self.outputs[name] = None if kind is None else self._memory(device, number, kind, shape, pointer)

    def get_outputs(self) -> list[Value]:
        return self.values

    def run(self) -> None:
        self.session.cuda.enqueue(77, self._compute)
        if any(
            place is None for place in self.outputs.values()
        ):  # whose size is known once it was computed here
            self.session.cuda.do_cuStreamSynchronize(ctypes.c_void_p(77))

    def _compute(self) -> None:
        results = self.session.session.run(list(self.outputs), {n: a.copy() for n, a in self.inputs.items()})
        self.values = []
        for (name, place), result in zip(self.outputs.items(), results, strict=True):
            if place is None:
                self.values.append(Value(self.session.cuda, result))
            else:
                assert place.shape == result.shape, name
                place[...] = result

    def _memory(self, device, number, kind, shape, pointer):
        assert (device, number) == ("cuda", 0)
        dtype = np.dtype(NUMBERS[kind])
        raw = self.session.cuda.at(pointer, math.prod(shape) * dtype.itemsize)
        return np.frombuffer(raw, dtype, math.prod(shape)).reshape(shape)


class Value:
    """Memory of ONNX Runtime's own, as long as this lives."""

    def __init__(self, cuda: FakeCuda, values: np.ndarray) -> None:
        self.cuda, self._shape = cuda, values.shape
        self._pointer = ctypes.c_void_p()
        assert cuda.do_cuMemAlloc_v2(ctypes.byref(self._pointer), ctypes.c_size_t(max(1, values.nbytes))) == 0
        ctypes.memmove(self._pointer.value, values.ctypes.data, values.nbytes)

    def data_ptr(self) -> int:
        return self._pointer.value

    def shape(self) -> list[int]:
        return list(self._shape)

    def __del__(self) -> None:
        self.cuda.do_cuMemFree_v2(self._pointer)
