"""The seam between the controller and whatever computes: one piece of network, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

__all__ = ["Arrays", "Engine", "OpenEngine"]

#: Tensor name → array; the batch is axis 0 of each.
Arrays: TypeAlias = Mapping[str, NDArray[Any]]


class Engine(Protocol):
    """A branch or an agent step, compiled for a device.

    ``run`` may be called from several threads at once; nothing may be called after ``close``.
    """

    def run(self, feeds: Arrays) -> Arrays:
        """Compute.

        Args:
            feeds: Every input by name; C-contiguous, float32, one batch size. They are
                read, not kept.

        Returns:
            Every output by name. The caller owns the arrays.

        Raises:
            EngineError: The runtime refused; the message names the piece.
        """

    def close(self) -> None:
        """Release what the engine holds. May be called twice."""


#: Path of a graph below the bundle → its engine. Raises EngineError.
OpenEngine: TypeAlias = Callable[[str], Engine]
