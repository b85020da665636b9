"""A queue with one worker, in simulated time: load that rises and falls against a governor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnp_deploy import LatencyGovernor

__all__ = ["SHAPES", "Clock", "Trace", "arrivals", "serve"]


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


#: Share 0..1 between the calm and the peak rate, by share 0..1 of the loaded time.
SHAPES: dict[str, Callable[[float], float]] = {
    "step": lambda t: 1.0,
    "ramp": lambda t: 1 - abs(2 * t - 1),
    "burst": lambda t: float(t % 0.2 < 0.06),
    "sinusoid": lambda t: (1 - math.cos(4 * math.pi * t)) / 2,
}


def arrivals(
    shape: str, *, calm: float, peak: float, lead_s: float, loaded_s: float, tail_s: float, seed: int
) -> NDArray[np.float64]:
    """Poisson arrivals, seconds from 0: calm for ``lead_s``, then a shape up to ``peak``, then calm again."""
    rng = np.random.default_rng(seed)
    end = lead_s + loaded_s + tail_s
    times = np.sort(rng.uniform(0, end, rng.poisson(peak * end)))
    loaded = (times - lead_s) / loaded_s
    rates = [calm + (peak - calm) * (SHAPES[shape](t) if 0 <= t < 1 else 0.0) for t in loaded]
    return times[rng.uniform(0, peak, len(times)) < np.asarray(rates)]


@dataclass(frozen=True)
class Trace:
    """Per request: seconds of arrival, latency in ms, price and its position."""

    arrived_s: NDArray[np.float64]
    latency_ms: NDArray[np.float64]
    penalty: NDArray[np.float64]
    position: NDArray[np.float64]

    def p95_ms(self, start_s: float = -math.inf, end_s: float = math.inf) -> float:
        """Of the requests that arrived between."""
        return float(
            np.percentile(self.latency_ms[(start_s <= self.arrived_s) & (self.arrived_s < end_s)], 95)
        )


def serve(
    times: NDArray[np.float64],
    service_ms: Callable[[float], float],
    position_of: Callable[[float], float],
    governor: LatencyGovernor | float,
    clock: Clock,
) -> Trace:
    """One worker, first come first served; the price is asked for when a request's turn comes.

    Args:
        times: Seconds of arrival, rising.
        service_ms: Position of the price → ms, noise included.
        position_of: Price → position.
        governor: It, or a fixed price.
        clock: The governor's.
    """
    start, free, rows = clock.now, clock.now, []
    for arrived in start + times:
        clock.now = max(free, arrived)
        penalty = governor if isinstance(governor, float) else governor.penalty
        position = position_of(penalty)
        clock.now += service_ms(position) / 1e3
        free = clock.now
        latency_ms = 1e3 * (clock.now - arrived)
        if not isinstance(governor, float):
            governor.record(latency_ms)
        rows.append((arrived - start, latency_ms, penalty, position))
    return Trace(*np.asarray(rows).T)
