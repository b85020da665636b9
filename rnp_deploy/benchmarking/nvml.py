"""NVML's view of the GPU that computes; nvidia-ml-py is imported when it is asked for."""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from typing import Any

from rnp_deploy.engines.cuda_driver import driver_call
from rnp_deploy.errors import DeviceError

__all__ = ["Nvml", "open_nvml"]


@dataclass(frozen=True)
class Nvml:
    """``pynvml``, started, with its handle and its name of the first CUDA device of this process."""

    module: Any
    gpu: Any
    name: str


def open_nvml() -> Nvml:
    """Start NVML and find the GPU.

    It is looked up by its PCI address: NVML neither numbers GPUs as CUDA does nor heeds CUDA_VISIBLE_DEVICES. Of
    an instance of MIG the handle is that of the whole GPU, which alone has clocks and counters.

    Raises:
        DeviceError: nvidia-ml-py, the driver or a GPU is missing, or NVML does not know it.
    """
    try:
        module = importlib.import_module("pynvml")
    except ImportError as err:
        raise DeviceError("NVML: nvidia-ml-py is not installed; pip install nvidia-ml-py") from err
    address = _pci_address()
    try:
        module.nvmlInit()
        gpu = module.nvmlDeviceGetHandleByPciBusId(address)
        return Nvml(module, gpu, str(module.nvmlDeviceGetName(gpu)))
    except module.NVMLError as err:
        raise DeviceError(f"NVML: it gives no access to the GPU at {address.decode()}: {err}") from err


def _pci_address() -> bytes:
    handle, address = ctypes.c_int(), ctypes.create_string_buffer(32)
    driver_call("cuDeviceGet", ctypes.byref(handle), 0)
    driver_call("cuDeviceGetPCIBusId", address, len(address), handle)
    return address.value
