"""The GPU that computes: what it is, and what its clocks do."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rnp_deploy.benchmarking.nvml import Nvml, open_nvml
from rnp_deploy.engines.cuda_driver import cuda_device

__all__ = ["gpu_environment", "tried"]

_OF_DRIVER = {
    "gpu_name": "name",
    "gpu_compute_capability": "compute_capability",
    "gpu_multiprocessors": "multiprocessors",
    "gpu_memory_bytes": "memory_bytes",
    "gpu_cuda": "driver_cuda",
}
#: Bits of nvmlClocksEventReasons, and of the throttle reasons that it was called before.
_REASONS = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
}
_IDLE, _APPLICATION = 0x1, 0x2
Value = TypeVar("Value")


def gpu_environment(root: Path = Path("/"), *, present: bool = True) -> dict[str, Any]:
    """All keys are always there; what is unknown is None, and nothing raises.

    - by the CUDA driver: ``gpu_name``, ``gpu_compute_capability`` (``"9.0"``), ``gpu_multiprocessors``,
      ``gpu_memory_bytes``, ``gpu_cuda`` (the newest CUDA version that the driver runs)
    - ``gpu_driver``: its version
    - by NVML: ``gpu_sm_clock_mhz`` and ``gpu_memory_clock_mhz`` now, ``gpu_sm_clock_max_mhz``,
      ``gpu_memory_clock_max_mhz``, ``gpu_sm_clock_application_mhz``, ``gpu_memory_clock_application_mhz``,
      ``gpu_power_limit_w``, ``gpu_persistence``, ``gpu_ecc``, ``gpu_mig``, ``gpu_temperature_c``
    - ``gpu_throttle_reasons``: what keeps the clocks from being higher now, ``"power cap, idle"``; ``"none"``
    - ``gpu_clocks_locked``: True where a setting of application clocks holds them; False where they have fallen
      because the GPU is idle. NVML does not tell clocks that ``nvidia-smi -lgc`` locked: then, and else, None

    Args:
        root: Where ``/proc`` lies.
        present: Whether to look; False gives None for every key.
    """
    device = tried(cuda_device) if present else None
    nvml = tried(open_nvml) if present else None
    found = {key: getattr(device, field, None) for key, field in _OF_DRIVER.items()}
    for key, ask in _OF_NVML.items():
        found[key] = None if nvml is None else tried(partial(ask, nvml))
    if present and found["gpu_driver"] is None:
        found["gpu_driver"] = tried(lambda: _kernel_module_version(root / "proc/driver/nvidia/version"))
    return found


def tried(probe: Callable[[], Value]) -> Value | None:
    """What it returns, or None where it raises."""
    with suppress(Exception):  # whatever a foreign system lacks, the benchmark goes on
        return probe()
    return None


def _kernel_module_version(path: Path) -> str:
    return str(re.findall(r"Kernel Module .*?(\d+\.[.\d]+)", path.read_text(encoding="utf-8"))[0])


def _number(function: str, kind: str) -> Callable[[Nvml], int]:
    return lambda nvml: int(getattr(nvml.module, function)(nvml.gpu, getattr(nvml.module, kind)))


def _throttle_reasons(nvml: Nvml) -> str:
    bits = nvml.module.nvmlDeviceGetCurrentClocksEventReasons(nvml.gpu)
    return ", ".join(name for bit, name in _REASONS.items() if bits & bit) or "none"


def _clocks_locked(nvml: Nvml) -> bool | None:
    bits = nvml.module.nvmlDeviceGetCurrentClocksEventReasons(nvml.gpu)
    if bits & _APPLICATION:
        return True
    now, most = (_OF_NVML[key](nvml) for key in ("gpu_sm_clock_mhz", "gpu_sm_clock_max_mhz"))
    return False if bits & _IDLE and now < most / 2 else None


_OF_NVML: dict[str, Callable[[Nvml], Any]] = {
    "gpu_driver": lambda nvml: nvml.module.nvmlSystemGetDriverVersion(),
    "gpu_sm_clock_mhz": _number("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
    "gpu_memory_clock_mhz": _number("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
    "gpu_sm_clock_max_mhz": _number("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_SM"),
    "gpu_memory_clock_max_mhz": _number("nvmlDeviceGetMaxClockInfo", "NVML_CLOCK_MEM"),
    "gpu_sm_clock_application_mhz": _number("nvmlDeviceGetApplicationsClock", "NVML_CLOCK_SM"),
    "gpu_memory_clock_application_mhz": _number("nvmlDeviceGetApplicationsClock", "NVML_CLOCK_MEM"),
    "gpu_clocks_locked": _clocks_locked,
    "gpu_throttle_reasons": _throttle_reasons,
    "gpu_power_limit_w": lambda nvml: nvml.module.nvmlDeviceGetEnforcedPowerLimit(nvml.gpu) / 1e3,
    "gpu_persistence": lambda nvml: bool(nvml.module.nvmlDeviceGetPersistenceMode(nvml.gpu)),
    "gpu_ecc": lambda nvml: bool(nvml.module.nvmlDeviceGetCurrentEccMode(nvml.gpu)),
    "gpu_mig": lambda nvml: bool(nvml.module.nvmlDeviceGetMigMode(nvml.gpu)[0]),
    "gpu_temperature_c": _number("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"),
}
