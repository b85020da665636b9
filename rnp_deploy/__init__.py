"""Deploy runtime-pruned CNNs: export branches, build engines, pick them per image.

Importing this package loads no deep-learning framework and no inference runtime; they are
loaded by what needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnp_deploy.controller import Controller, Result
    from rnp_deploy.governor import LatencyGovernor

__all__ = ["Controller", "LatencyGovernor", "Result", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("Controller", "Result"):
        from rnp_deploy import controller

        return getattr(controller, name)
    if name == "LatencyGovernor":
        from rnp_deploy import governor

        return governor.LatencyGovernor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
