"""Which backend runs a bundle or an engine set, and on which device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rnp_deploy.array_memory import HOST, ArrayMemory
from rnp_deploy.bundle.engine_set import EngineSetManifest, is_engine_set, read_engines
from rnp_deploy.bundle.reading import read_manifest
from rnp_deploy.engine import OpenEngine
from rnp_deploy.engines.sources import Source, open_source
from rnp_deploy.errors import DeviceError, EngineError, InputError

__all__ = ["BACKENDS", "DEVICES", "Opened", "open_backend"]

BACKENDS = ("auto", "onnxruntime", "tensorrt", "torch")
DEVICES = ("auto", "cpu", "cuda")
_NO_CACHE = ""  # engine sets in caches are those of ONNX Runtime on the CPU


@dataclass(frozen=True)
class Opened:
    """A bundle or engine set with what runs it.

    Attributes:
        backend, device: What, and where.
        source: Verified.
        open_engine: Of its graphs or engines.
        memory: Where their arrays lie.
        max_batch: The largest that they take; None: any.
    """

    backend: str
    device: str
    source: Source
    open_engine: OpenEngine
    memory: ArrayMemory = HOST
    max_batch: int | None = None


def open_backend(
    path: str | Path, backend: str, device: str, threads: int | None, cache_dir: str | Path | None
) -> Opened:
    """Open a bundle or engine set for a backend; arguments and errors as :meth:`rnp_deploy.Controller.load`."""
    if backend not in BACKENDS:
        raise InputError(f"backend is {backend!r}; use one of {', '.join(map(repr, BACKENDS))}")
    if device not in DEVICES:
        raise InputError(
            f"device is {device!r}; use one of {', '.join(map(repr, DEVICES))} (CUDA_VISIBLE_DEVICES chooses among GPUs)"
        )
    path = Path(path)
    if is_engine_set(path):
        return _engine_set(path, backend, device, threads)
    if backend == "tensorrt":
        raise EngineError(
            f"{path} is a bundle, and TensorRT runs engines: rnp-build {path} -o ENGINES --backend tensorrt (TensorRT "
            "on the GPU that runs them, TensorRT-RTX anywhere), and load those"
        )
    in_bf16 = read_manifest(path).precision == "bf16"
    if backend == "torch" or (backend == "auto" and in_bf16):
        return _torch(path, device, threads)
    if device == "cuda" or (device == "auto" and _onnxruntime_has_a_gpu()):
        return _onnxruntime_cuda(path)
    if in_bf16:
        raise EngineError(
            f"{path} is in bf16, for which ONNX Runtime has no convolutions on the CPU; use backend='torch', or "
            "export with --precision fp16"
        )
    return _onnxruntime(path, threads, cache_dir)


def _engine_set(path: Path, backend: str, device: str, threads: int | None) -> Opened:
    engines = read_engines(path)
    made_for = engines.backend
    if backend not in ("auto", made_for):
        raise EngineError(
            f"{path} is an engine set of {made_for}, which backend={backend!r} does not run; leave backend out, "
            "or load the bundle"
        )
    own = "cpu" if made_for == "onnxruntime" else "cuda"
    if device not in ("auto", own):
        raise EngineError(f"{path} is an engine set for {own}; load the bundle for device={device!r}")
    if made_for == "tensorrt":
        return _tensorrt(path, engines)
    return _onnxruntime(path, threads, _NO_CACHE, engines.max_batch)


def _onnxruntime(
    path: Path, threads: int | None, cache_dir: str | Path | None, max_batch: int | None = None
) -> Opened:
    from rnp_deploy.engines import ort

    source = open_source(path, cache_dir)
    open_engine = ort.opener(source.graphs, threads, optimised=source.plan is not None)
    return Opened("onnxruntime", "cpu", source, open_engine, max_batch=max_batch)


def _onnxruntime_cuda(path: Path) -> Opened:
    from rnp_deploy.engines import ort_cuda
    from rnp_deploy.engines.cuda_memory import CudaMemory

    source, memory = open_source(path, _NO_CACHE), CudaMemory()
    return Opened("onnxruntime", "cuda", source, ort_cuda.opener(source.graphs, memory), memory)


def _onnxruntime_has_a_gpu() -> bool:
    """Whether the ONNX Runtime here is built for CUDA and there is a device."""
    from rnp_deploy.engines.cuda_driver import cuda_device
    from rnp_deploy.engines.ort import require_runtime

    if "CUDAExecutionProvider" not in require_runtime().get_available_providers():
        return False
    try:
        cuda_device()
    except DeviceError:
        return False
    return True


def _tensorrt(path: Path, engines: EngineSetManifest) -> Opened:
    from rnp_deploy.engines import trt
    from rnp_deploy.engines.cuda_memory import CudaMemory
    from rnp_deploy.engines.trt_library import load_tensorrt

    source = open_source(path, _NO_CACHE)  # looks at the driver before TensorRT is touched
    library, memory = load_tensorrt(engines.fingerprint.get("flavor", "auto")), CudaMemory()
    return Opened(
        "tensorrt", "cuda", source, trt.opener(source.graphs, library, memory), memory, engines.max_batch
    )


def _torch(path: Path, device: str, threads: int | None) -> Opened:
    from rnp_deploy.engines import torch_engine

    source = open_source(path, _NO_CACHE)
    if torch_engine.device_of(device).type == "cpu":
        return Opened("torch", "cpu", source, torch_engine.opener(source.graphs, "cpu", threads))
    from rnp_deploy.engines.cuda_memory import CudaMemory

    memory = CudaMemory()
    return Opened(
        "torch",
        "cuda",
        source,
        torch_engine.opener(source.graphs, "cuda", threads, stream=memory.stream),
        memory,
    )
