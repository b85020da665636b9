"""The clock that timing reads and waits by; a simulated one stands in for it in tests."""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["WALL", "Clock", "WallClock"]

#: Before this much is left, waiting sleeps; the rest it spins, since a sleep ends late by as much.
_SPIN_NS = 2_000_000


class Clock(Protocol):
    """Nanoseconds that never go back."""

    def now_ns(self) -> int:
        """Since some moment in the past."""

    def wait_until_ns(self, moment_ns: int) -> None:
        """Return once :meth:`now_ns` is ``moment_ns`` or more; at once where it is already."""


class WallClock:
    """``perf_counter_ns``."""

    now_ns = staticmethod(time.perf_counter_ns)

    def wait_until_ns(self, moment_ns: int) -> None:
        """See :class:`Clock`; sleeps, and spins over the last 2 ms."""
        while (left_ns := moment_ns - time.perf_counter_ns()) > 0:
            if left_ns > _SPIN_NS:
                time.sleep((left_ns - _SPIN_NS) / 1e9)


WALL = WallClock()
