"""The backends that every test of test_gpu.py is for: those of the CPU, stand-ins for CUDA's, and CUDA's own."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_cuda import use_fake_cuda
from fake_ort_cuda import CudaSessions
from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.cuda_driver import cuda_device, current_context, driver_call
from rnp_deploy.engines.cuda_memory import CudaMemory
from rnp_deploy.errors import DeviceError, MissingRuntimeError
from rnp_deploy.memory import resident_bytes

__all__ = ["CPU", "CUDA", "MAX_BATCH", "STAND_IN", "Backend", "engines_for", "full_memory", "why_not"]

#: What TensorRT's engines are built for.
MAX_BATCH = 1024
_STAND_IN_BYTES = 2**25
_SMALLEST_BLOCK = 2**21  # the driver hands memory out in pages of this size


@dataclass(frozen=True)
class Backend:
    """A backend on a device; ``flavor`` of TensorRT; ``stand_in``: over a driver of plain Python."""

    backend: str
    device: str
    flavor: str = ""
    stand_in: bool = False

    def __str__(self) -> str:
        return " ".join(filter(None, (self.backend, self.flavor, self.device, "stand-in" * self.stand_in)))

    def load(self, path: Path, **settings: Any) -> Controller:
        """A controller of a bundle, or of an engine set of TensorRT."""
        threads = 1 if self.backend == "onnxruntime" else None
        return Controller.load(path, self.backend, self.device, threads, cache_dir="", **settings)

    def stand_in_for_cuda(self, monkeypatch: Any) -> Any:
        """Put stand-ins for the driver and ONNX Runtime's provider in place; the fake driver."""
        import onnxruntime

        fake = use_fake_cuda(monkeypatch, limit_bytes=_STAND_IN_BYTES)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(onnxruntime, "InferenceSession", CudaSessions(fake))
        return fake

    def used_bytes(self) -> dict[str, int]:
        """Memory of this process, and of the device."""
        used = {"host": resident_bytes() or 0}
        if self.device == "cuda":
            free, total = _device_memory()
            used["device"] = total - free
        return used


def _table(*backends: Backend, marks: Any = ()) -> list[Any]:
    return [pytest.param(backend, id=str(backend), marks=marks) for backend in backends]


CPU = _table(Backend("onnxruntime", "cpu"), Backend("torch", "cpu"))
STAND_IN = _table(Backend("onnxruntime", "cuda", stand_in=True))
CUDA = _table(
    Backend("torch", "cuda"),
    Backend("onnxruntime", "cuda"),
    Backend("tensorrt", "cuda", "tensorrt"),
    Backend("tensorrt", "cuda", "rtx"),
    marks=pytest.mark.gpu,
)


def why_not(backend: Backend) -> str | None:
    """What keeps a backend from being run here; None: nothing."""
    if backend.device == "cpu" or backend.stand_in:
        return None
    try:
        device = cuda_device()
    except DeviceError as err:
        return f"no driver: {err}"
    if backend.backend == "torch":
        import torch

        if torch.cuda.is_available():
            return None
        return f"torch without CUDA: torch {torch.__version__} is built for CUDA {torch.version.cuda}"
    if backend.backend == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            return None
        return f"ONNX Runtime without CUDA: {onnxruntime.__version__} has {onnxruntime.get_available_providers()}"
    return _why_no_tensorrt(backend.flavor, device.compute_capability)


def _why_no_tensorrt(flavor: str, compute_capability: str) -> str | None:
    from rnp_deploy.engines.trt_library import load_tensorrt
    from rnp_deploy.engines.trt_network import compute_capabilities

    try:
        library = load_tensorrt(flavor)
    except MissingRuntimeError as err:
        return f"no TensorRT: {err}"
    known = compute_capabilities(library)
    if flavor == "rtx" and compute_capability not in known:
        return f"no TensorRT for this GPU: {library.name} builds for {', '.join(known)}, this is {compute_capability}"
    return None


def engines_for(backend: Backend, bundle: Path, target: Path) -> Path:
    """What the backend loads: the bundle, or an engine set that is built here."""
    if backend.backend != "tensorrt":
        return bundle
    from rnp_deploy.engines.trt_build import build_tensorrt_set
    from rnp_deploy.engines.trt_network import BuildOptions

    if not target.exists():
        here = (cuda_device().compute_capability,) if backend.flavor == "rtx" else ()
        options = BuildOptions(max_batch=MAX_BATCH, external_tactics=False, compute_capabilities=here)
        build_tensorrt_set(
            open_bundle(bundle), target, options=options, flavor=backend.flavor, workers=1, cache_dir=""
        )
    return target


@contextmanager
def full_memory() -> Iterator[None]:
    """Take all of the device's memory that is free, but for what no block of 2 MiB fits in."""
    memory, blocks = CudaMemory(), []
    size = _device_memory()[0]
    while size >= _SMALLEST_BLOCK:
        with suppress(DeviceError), memory.turn():
            blocks.append(memory.empty((size,), np.dtype(np.uint8)))
            continue
        size //= 2
    try:
        yield
    finally:
        with memory.turn():
            blocks.clear()


def _device_memory() -> tuple[int, int]:
    """Free and in all, bytes."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with current_context():
        driver_call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value
