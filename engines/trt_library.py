"""Which TensorRT is here: the full one, or TensorRT-RTX, whose Python API is nearly the same."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from rnp_deploy.errors import MissingRuntimeError

__all__ = [
    "DTYPES",
    "FLAVORS",
    "Flavor",
    "TensorRt",
    "in_eights",
    "load_tensorrt",
    "said_by",
    "tensorrt_logger",
]

logger = logging.getLogger(__name__)

Flavor = Literal["tensorrt", "rtx"]
FLAVORS: tuple[Flavor, ...] = ("tensorrt", "rtx")
#: Our name of a type → TensorRT's.
DTYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int32": "INT32", "int64": "INT64"}
_MODULES = {"tensorrt": ("tensorrt",), "rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_INSTALL = {
    "tensorrt": "TensorRT comes with JetPack, or with pip install 'rnp-deploy[tensorrt]' from NVIDIA's index",
    "rtx": "pip install 'rnp-deploy[rtx]' has TensorRT-RTX, for x86-64 and GeForce or RTX GPUs",
}
#: Messages kept of a build that fails: the last ones say why.
_KEPT_MESSAGES = 8


def in_eights(channels: int) -> int:
    """Channels as the format HWC8 has them in memory: rounded up to a multiple of eight."""
    return -(-channels // 8) * 8


@dataclass(frozen=True)
class TensorRt:
    """A TensorRT that was imported.

    Attributes:
        module: ``tensorrt``, or ``tensorrt_rtx`` under whichever name it is installed.
        flavor: ``"tensorrt"`` or ``"rtx"``.
        version: All of it, such as ``"10.3.0.30"``: plans hold for this one alone.
    """

    module: Any
    flavor: Flavor
    version: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{'TensorRT-RTX' if self.flavor == 'rtx' else 'TensorRT'} {self.version}"

    @property
    def strongly_typed(self) -> bool:
        """Whether the types of a network are those of its ONNX; TensorRT 8 chooses among allowed ones."""
        return hasattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def load_tensorrt(flavor: str = "auto") -> TensorRt:
    """Import TensorRT; makes none of its objects, since some need a driver.

    Args:
        flavor: ``"tensorrt"``, ``"rtx"``, or ``"auto"``: the full one where it is installed.

    Raises:
        MissingRuntimeError: It is not installed, or its libraries cannot be loaded.
    """
    failures = []
    for wanted in FLAVORS if flavor == "auto" else (flavor,):
        for name in _MODULES[wanted]:
            try:
                module = importlib.import_module(name)
            except (ImportError, OSError) as err:  # OSError: a library that it loads itself
                absent = isinstance(err, ModuleNotFoundError) and err.name == name
                failures += [] if absent else [f"{name} is installed but cannot be imported: {err}"]
                continue
            return TensorRt(module, "rtx" if wanted == "rtx" else "tensorrt", str(module.__version__))
    remedies = [_INSTALL[wanted] for wanted in (FLAVORS if flavor == "auto" else (flavor,))]
    raise MissingRuntimeError("; ".join(["no TensorRT can be used here", *failures, *remedies]))


@cache
def tensorrt_logger(library: TensorRt) -> Any:
    """The ``ILogger`` of this process: to Python's logging, the latest errors kept in ``errors``.

    TensorRT holds one for all its objects; the first that it is given stays.
    """
    trt = library.module
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.DEBUG,  # these come back as exceptions, with their text
        trt.ILogger.ERROR: logging.DEBUG,
        trt.ILogger.WARNING: logging.DEBUG,
    }

    class _Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # known at run time only
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors[:] = [*self.errors, msg][-_KEPT_MESSAGES:]
            if severity in levels:
                logger.log(levels[severity], "%s: %s", library.name, msg)

    return _Logger()


def said_by(library: TensorRt) -> str:
    """What TensorRT logged last of errors, for a call that gives nothing but None."""
    return " ".join(" ".join(tensorrt_logger(library).errors[-2:]).split()) or "it does not say why"
