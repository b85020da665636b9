"""A clock that only computing and waiting move."""

from __future__ import annotations

__all__ = ["SimulatedClock"]


class SimulatedClock:
    """See :class:`rnp_deploy.benchmarking.clock.Clock`; starts at one second.

    Attributes:
        now: Nanoseconds; what computes adds to it.
        waits: The moments that were waited for, in order.
    """

    def __init__(self) -> None:
        self.now = 1_000_000_000
        self.waits: list[int] = []

    def now_ns(self) -> int:
        return self.now

    def wait_until_ns(self, moment_ns: int) -> None:
        self.waits.append(moment_ns)
        self.now = max(self.now, moment_ns)

    def spend_ms(self, ms: float) -> None:
        """Let time pass, as if something was computed."""
        self.now += round(ms * 1e6)
