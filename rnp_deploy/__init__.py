"""Deploy runtime-pruned CNNs: export branches, build engines, pick them per image.

Importing this package loads no deep-learning framework and no inference runtime; they are
loaded by what needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnp_deploy.batching import RequestBatcher
    from rnp_deploy.controller import Controller, Result
    from rnp_deploy.governor import LatencyGovernor

__all__ = ["Controller", "LatencyGovernor", "RequestBatcher", "Result", "__version__"]

__version__ = "0.1.0"

_MODULES = {
    "Controller": "controller",
    "LatencyGovernor": "governor",
    "RequestBatcher": "batching",
    "Result": "controller",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"rnp_deploy.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
