"""The seam between the controller and whatever computes: one piece of network, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

__all__ = ["AnyArray", "Arrays", "Engine", "OpenEngine"]

AnyArray: TypeAlias = NDArray[Any]

#: Tensor name → array; the batch is axis 0 of each.
Arrays: TypeAlias = Mapping[str, AnyArray]


class Engine(Protocol):
    """A branch or an agent step, compiled for a device.

    ``run`` and ``bind`` may be called from several threads at once; nothing may be called
    after ``close``. An engine to which nothing refers any more is released as if closed.
    """

    def run(self, feeds: Arrays) -> Arrays:
        """Compute.

        Args:
            feeds: Every input by name; C-contiguous, of the input's dtype, one batch size.
                They are read, not kept.

        Returns:
            Every output by name. The caller owns the arrays.

        Raises:
            EngineError: The runtime refused; the message names the piece.
        """

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare a call that reads and writes the same memory every time.

        Args:
            inputs: Every input by name, as for ``run``; kept, and read at each call.
            outputs: The outputs that are wanted, by name; kept, and written at each call.
                One may be the memory of an input, where the piece was built for it.

        Returns:
            The call, for one thread at a time; it raises EngineError like ``run``. It may
            outlive ``close``: what is under way then is finished.

        Raises:
            EngineError: A name or type does not fit.
        """

    def close(self) -> None:
        """Release what the engine holds. May be called twice."""


#: Path of a graph below the bundle or engine set → its engine. Raises EngineError.
OpenEngine: TypeAlias = Callable[[str], Engine]
