"""Run a controller on a GPU that is lost between two runs, in a process of its own.

    python lost_device.py PATH BACKEND

A kernel that stops at an illegal instruction makes the driver give up this process's context, and no other.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from rnp_deploy import Controller
from rnp_deploy.engines.cuda_driver import current_context, driver_call
from rnp_deploy.errors import DeviceError, EngineError

__all__ = ["CLEAN", "errors_of_a_lost_device"]

CLEAN = "clean"
_PTX = b".version 6.4\n.target sm_70\n.address_size 64\n.visible .entry lose()\n{\n  trap;\n}\n\0"


def errors_of_a_lost_device(controller: Controller, lose: Callable[[], None]) -> list[str]:
    """What two runs on a lost device say; anything but an EngineError is raised."""
    images = np.zeros((1, *controller.manifest.inputs[0].shape), np.float32)
    controller.run(images)
    lose()
    return [_error_of(controller, images) for _ in range(2)]


def _error_of(controller: Controller, images: NDArray[np.float32]) -> str:
    try:
        controller.run(images)
    except EngineError as err:
        return str(err)
    raise SystemExit("a run on a lost device gave no error")


def stop_at_an_illegal_instruction() -> None:
    """Make every later call of this process's context fail."""
    module, function, nothing = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    with suppress(DeviceError), current_context():
        driver_call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(_PTX))
        driver_call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"lose"))
        driver_call("cuLaunchKernel", function, 1, 1, 1, 1, 1, 1, 0, nothing, nothing, nothing)
        driver_call("cuCtxSynchronize")
        raise SystemExit("the device is still there")


def main(path: str, backend: str) -> None:
    """Print the errors, and CLEAN at the end."""
    with Controller.load(path, backend, "cuda", cache_dir="") as controller:
        said = errors_of_a_lost_device(controller, stop_at_an_illegal_instruction)
    sys.stdout.write("\n".join([*said, CLEAN]))
    sys.stdout.flush()
    os._exit(0)  # what the runtimes do at exit on a lost device is their own


if __name__ == "__main__":
    main(*sys.argv[1:])
