"""The CUDA driver, by the few calls that running engines takes: no package is needed beside the driver itself."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from rnp_deploy.errors import DeviceError

__all__ = ["CudaDevice", "cuda_device", "current_context", "driver_call"]

_LIBRARY = "libcuda.so.1"
_OUT_OF_MEMORY = 2
#: Attributes of cuDeviceGetAttribute.
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76


@dataclass(frozen=True)
class CudaDevice:
    """The first CUDA device of this process.

    Attributes:
        name: As the driver names it.
        compute_capability: ``"9.0"`` on Hopper.
        multiprocessors: How many.
        memory_bytes: In all.
        driver_cuda: The newest CUDA version that the driver runs, ``"13.0"``.
    """

    name: str
    compute_capability: str
    multiprocessors: int
    memory_bytes: int
    driver_cuda: str


def cuda_device() -> CudaDevice:
    """What the first device is; set CUDA_VISIBLE_DEVICES to choose another.

    Raises:
        DeviceError: There is no driver, or no device that it can use.
    """
    version, handle = ctypes.c_int(), ctypes.c_int()
    driver_call("cuDriverGetVersion", ctypes.byref(version))
    driver_call("cuDeviceGet", ctypes.byref(handle), 0)
    name, total = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver_call("cuDeviceGetName", name, len(name), handle)
    driver_call("cuDeviceTotalMem_v2", ctypes.byref(total), handle)
    return CudaDevice(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{_attribute(_MAJOR, handle)}.{_attribute(_MINOR, handle)}",
        multiprocessors=_attribute(_MULTIPROCESSORS, handle),
        memory_bytes=total.value,
        driver_cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def driver_call(name: str, *arguments: Any) -> None:
    """Call a function of the driver API.

    Args:
        name: With its version, ``"cuMemAlloc_v2"``.
        arguments: ctypes values, or integers for ``int`` and ``unsigned``.

    Raises:
        DeviceError: There is no driver, or it says no; the message has its own words.
    """
    function = getattr(_library(), name, None)
    if function is None:
        raise DeviceError(f"the CUDA driver has no {name}: it is too old; install a newer one")
    _check(_library(), name, function(*arguments))


@contextmanager
def current_context() -> Iterator[None]:
    """The device's primary context, which TensorRT, ONNX Runtime and torch use too, current in this thread."""
    driver_call("cuCtxPushCurrent_v2", _primary_context())
    try:
        yield
    finally:
        driver_call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


@cache
def _primary_context() -> ctypes.c_void_p:
    context, handle = ctypes.c_void_p(), ctypes.c_int()
    driver_call("cuDeviceGet", ctypes.byref(handle), 0)
    driver_call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    return context


@cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as err:
        raise DeviceError(
            f"there is no NVIDIA driver here ({_LIBRARY} cannot be loaded); on a machine with a GPU install it, "
            "in a container pass the GPU through (--gpus all)"
        ) from err
    _check(library, "cuInit", library.cuInit(0))
    return library


def _attribute(number: int, handle: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver_call("cuDeviceGetAttribute", ctypes.byref(value), number, handle)
    return value.value


def _check(library: Any, name: str, code: int) -> None:
    if code == 0:
        return
    words = ctypes.c_char_p()
    library.cuGetErrorString(code, ctypes.byref(words))
    said = (words.value or b"no description").decode(errors="replace")
    remedy = (
        "; free GPU memory: a smaller max batch, memory_budget_bytes, or a bundle exported with branches='outputs'"
        if code == _OUT_OF_MEMORY
        else ""
    )
    raise DeviceError(f"the CUDA driver: {name} failed: {said} (error {code}){remedy}")
