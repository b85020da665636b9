"""What an engine set holds for: of ONNX Runtime, this runtime on this processor."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from rnp_deploy.bundle.engine_set import EngineSetManifest, check_fingerprint
from rnp_deploy.engines.ort import require_runtime
from rnp_deploy.engines.trt_fingerprint import misfits
from rnp_deploy.errors import EngineSetMismatchError

__all__ = ["check_fits", "fingerprint", "processor_name"]

#: Instruction sets that decide which kernels and which memory layout ONNX Runtime takes.
_FEATURES = (
    "sse4_1", "avx", "fma", "avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni",
    "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "asimddp", "fphp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


def check_fits(path: Path, engines: EngineSetManifest) -> None:
    """Refuse an engine set that cannot be loaded here, saying what does not fit and what to do.

    Raises:
        EngineSetMismatchError: It was built for something else, or there is no GPU for it.
        MissingRuntimeError: Its runtime is not installed, so that nobody can tell.
    """
    if engines.backend == "onnxruntime":
        check_fingerprint(path, engines, fingerprint())
        return
    reasons = misfits(engines.fingerprint)
    if reasons:
        raise EngineSetMismatchError(f"{path} cannot be loaded here: {'; '.join(reasons)}")


@cache
def fingerprint() -> dict[str, str]:
    """Name → value, of this process; raises MissingRuntimeError without ONNX Runtime."""
    flags = set(_cpuinfo("flags").split()) | set(_cpuinfo("Features").split())
    return {
        "onnxruntime": str(require_runtime().__version__),
        "machine": platform.machine(),
        "processor": processor_name(),
        "features": " ".join(feature for feature in _FEATURES if feature in flags),
    }


def processor_name() -> str:
    """The first processor's model, as ``/proc/cpuinfo`` names it."""
    return _cpuinfo("model name") or "unknown"


def _cpuinfo(field: str) -> str:
    """The first value of a field of ``/proc/cpuinfo``; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field)
    return next(values, "")
