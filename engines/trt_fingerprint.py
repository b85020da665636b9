"""What an engine set of TensorRT holds for, and what keeps it from being loaded here."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
from collections.abc import Mapping

from rnp_deploy.engines.cuda_driver import CudaDevice, cuda_device
from rnp_deploy.engines.trt_library import TensorRt, load_tensorrt
from rnp_deploy.errors import DeviceError

__all__ = ["environment", "misfits", "tensorrt_fingerprint"]

#: What TensorRT-RTX builds for unless it is told, by NVIDIA's documentation; ``+``: and all later ones.
_RTX_DEFAULT = ("8.0", "8.6", "8.9", "12.0+")


def tensorrt_fingerprint(
    library: TensorRt, device: CudaDevice | None, compute_capabilities: tuple[str, ...]
) -> dict[str, str]:
    """Name → value, of what is built now.

    Args:
        library: Loaded.
        device: Built for; None: TensorRT-RTX, whose plans hold for several, on Linux and Windows.
        compute_capabilities: That TensorRT-RTX was told; empty: its own choice.
    """
    fits = {"flavor": library.flavor, "tensorrt": library.version, "machine": platform.machine()}
    if device is None:
        return fits | {"compute_capability": " ".join(compute_capabilities or _RTX_DEFAULT)}
    return fits | {
        "system": platform.system(),
        "gpu": device.name,
        "compute_capability": device.compute_capability,
        "multiprocessors": str(device.multiprocessors),
    }


def environment(library: TensorRt, device: CudaDevice | None) -> dict[str, str]:
    """What else a set was built with; recorded, and never compared."""
    cuda = _cuda_of(library)
    known = {"system": platform.system()} | ({} if cuda is None else {"cuda": str(cuda)})
    if device is None:
        return known
    return known | {
        "gpu": device.name,
        "compute_capability": device.compute_capability,
        "multiprocessors": str(device.multiprocessors),
        "memory_bytes": str(device.memory_bytes),
        "driver_cuda": device.driver_cuda,
    }


def misfits(built: Mapping[str, str]) -> list[str]:
    """Why engines with this fingerprint cannot be loaded here, each with what to do; empty: they can.

    No TensorRT object is made: some of them need a driver, and take the process with them.

    Raises:
        MissingRuntimeError: The TensorRT that would tell is not installed.
    """
    library = load_tensorrt(built.get("flavor", "auto"))
    here = {"tensorrt": library.version, "machine": platform.machine(), "system": platform.system()}
    remedies = {
        "tensorrt": "install that version, or build the set again with this one",
        "machine": "build it on such a machine",
        "system": "build it on this system",
    }
    reasons = [
        f"{name} was {built[name]!r} and is {value!r}: {remedies[name]}"
        for name, value in here.items()
        if not _same(name, built.get(name, value), value)
    ]
    try:
        device = cuda_device()
    except DeviceError as err:
        return [*reasons, str(err)]
    cuda = _cuda_of(library)
    if cuda is not None and int(device.driver_cuda.partition(".")[0]) < cuda:
        reasons.append(
            f"the driver runs CUDA up to {device.driver_cuda} and {library.name} needs CUDA {cuda}: install a newer "
            f"driver, or {library.name} for an older CUDA"
        )
    if not _fits(device.compute_capability, built.get("compute_capability", "")):
        reasons.append(
            f"built for compute capability {built.get('compute_capability')!r} and {device.name} has "
            f"{device.compute_capability}: build it for this GPU"
        )
    elif built.get("multiprocessors", str(device.multiprocessors)) != str(device.multiprocessors) or (
        built.get("gpu", device.name) != device.name
    ):
        reasons.append(
            f"built on {built.get('gpu')} with {built.get('multiprocessors')} multiprocessors and here is "
            f"{device.name} with {device.multiprocessors}: build it on this GPU"
        )
    return reasons


def _same(name: str, built: str, here: str) -> bool:
    """Whether a value is the one here; a version of TensorRT may be told with more or fewer numbers."""
    if name != "tensorrt":
        return built == here
    return f"{built}.".startswith(f"{here}.") or f"{here}.".startswith(f"{built}.")


def _fits(compute_capability: str, listed: str) -> bool:
    mine = _number(compute_capability)
    return any(
        mine >= _number(each[:-1]) if each.endswith("+") else mine == _number(each) for each in listed.split()
    )


def _number(compute_capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", compute_capability))


def _cuda_of(library: TensorRt) -> int | None:
    """The major CUDA version that a package from PyPI was made for; None: another kind of installation."""
    stem = "tensorrt_rtx" if library.flavor == "rtx" else "tensorrt"
    for major in range(11, 20):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if importlib.metadata.version(f"{stem}_cu{major}_bindings") == library.version:
                return major
    return None
