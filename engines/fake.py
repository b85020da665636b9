"""An engine of plain Python, so that what uses engines can be tested without a runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rnp_deploy.engine import Arrays
from rnp_deploy.errors import EngineError

__all__ = ["FakeEngine"]


class FakeEngine:
    """Calls a function, and counts its runs.

    Attributes:
        runs: The feeds of every run or bound call, in order.
        closed: Whether ``close`` was called.
    """

    def __init__(self, compute: Callable[[Arrays], Arrays]) -> None:
        self._compute = compute
        self.runs: list[Arrays] = []
        self.closed = False

    def run(self, feeds: Arrays) -> Arrays:
        """Call the function; EngineError after ``close``."""
        if self.closed:
            raise EngineError("a fake engine was run after close")
        self.runs.append(feeds)
        return self._compute(feeds)

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """Prepare a run of copies of the inputs, whose results are copied to the outputs."""

        def call() -> None:
            results = self.run({name: array.copy() for name, array in inputs.items()})
            for name, array in outputs.items():
                if name not in results:
                    raise EngineError(f"a fake engine has no output {name!r}")
                np.copyto(array, results[name])

        return call

    def close(self) -> None:
        """Refuse further runs."""
        self.closed = True
