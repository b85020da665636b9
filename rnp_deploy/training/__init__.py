"""Training: a backbone, then the agent that prunes it at run time (algorithm 1 of the paper).

What needs torch is imported on first use, so that a command can show the defaults at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rnp_deploy.training.config import TrainingConfig

if TYPE_CHECKING:
    from rnp_deploy.training.algorithm import RunSettings, TrainingResult, train
    from rnp_deploy.training.evaluation import evaluate

__all__ = ["RunSettings", "TrainingConfig", "TrainingResult", "evaluate", "train"]

_MODULES = {
    "RunSettings": "algorithm",
    "TrainingResult": "algorithm",
    "evaluate": "evaluation",
    "train": "algorithm",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
