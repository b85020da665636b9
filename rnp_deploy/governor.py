"""Keep the latency that users see under a target, by moving the price of computing."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rnp_deploy.errors import InputError
from rnp_deploy.latency import LatencyCurve
from rnp_deploy.price_scale import PriceScale

__all__ = ["GovernorState", "LatencyGovernor"]

# Latencies as shares of the target.
_LATE, _NEAR = 0.8, 0.65
_WORST = 10.0  # more counts as this much, infinity (a request that was dropped) too
_TAIL = 0.05  # of the requests may be late: the governed quantile is the p95
_FEWEST = 20  # requests before a share of them says something
_RECENT_WEIGHT = 0.3  # of the newest request in the recent mean: about the last three count
_WORSE = 1.1  # times as late as at the last raise: no time to wait what that one does
_STEP, _STEP_PER_EXCESS, _LARGEST_STEP = 0.1, 1.0, 0.5  # of the scale of prices
_EDGE, _EDGE_SLOWER = 0.1, 4.0  # above the position that was too low: so wide, so much slower
_MOST_REQUESTS = 4096  # in a window


@dataclass(frozen=True)
class GovernorState:
    """What a governor sees and does, for monitoring.

    Attributes:
        penalty: For the next request.
        position: The same on the scale of prices: 0 the lowest of the range, 1 the dearest.
        p95_ms: Of the requests in the window; None where there were none.
        requests: In the window.
        raises: How often the price was raised since the governor was made.
        out_of_reach: The target is missed at the dearest price: more than 5 % of the requests
            that came with it took longer, or the curve says that it cannot be met. Load has to
            be shed, or the target moved.
    """

    penalty: float
    position: float
    p95_ms: float | None
    requests: int
    raises: int
    out_of_reach: bool


class LatencyGovernor:
    """Moves the penalty so that the p95 latency stays under a target, while the load rises and falls.

    ::

        governor = LatencyGovernor(target_latency_ms=20.0, penalty_range=(-0.02, 1.0))
        for image, arrived_s in queue:
            result = controller.run(image, penalty=governor.penalty)
            governor.record(1e3 * (time.monotonic() - arrived_s))  # waiting and computing

    The law. The governor moves on the scale of prices (0 the lowest, 1 the dearest; equal steps are
    about equal steps of cost). A request is *late* above 80 % of the target, *near* above 65 %.

    - *Raise fast.* When the newest request is late, and so is either the recent mean (exponential,
      weight 0.3: about three requests, long before a p95 is known: a queue builds up) or more than
      5 % of the window, one request more being forgiven (chronic lateness; from 20 requests on):
      by 0.1 + 1 per target that the recent mean is beyond late, at most 0.5. Then it waits one
      target, since what is queued has waited at the old price already, unless a request is 10 %
      later than the one that raised last. The window begins anew, so that one queue is not held
      against two prices.
    - *Give back slowly.* From ``window_s`` after the last raise on, while at most 5 % of the window
      is near: down by 1 / ``give_back_s`` of the scale a second. Between near and late nothing
      moves (hysteresis), so noise around the target does not make the price swing. The last tenth
      of the scale above the position that proved too low takes four times as long: under a
      steady load the price lingers where it suffices, instead of falling off that edge again and again.
    - *Ends.* The position is clamped and nothing is summed up beyond the ends: the first quiet
      window at the dearest price begins the way down, the first late requests at the lowest the way up.
    - *Idle.* Requests older than ``window_s`` count for nothing; without any, accuracy comes back.

    The asymmetry is meant: a queue that grows makes every later request late, whereas a price too
    high costs a little accuracy for seconds.

    Any thread may call; a call takes microseconds. There is no thread behind it.
    """

    def __init__(
        self,
        *,
        target_latency_ms: float,
        penalty_range: tuple[float, float] | None,
        curve: LatencyCurve | None = None,
        window_s: float = 5.0,
        give_back_s: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin at the lowest price.

        Args:
            target_latency_ms: What 95 of 100 requests are to stay under, waiting included.
            penalty_range: Lowest and dearest price, as in ``manifest.agent.penalty_range``.
            curve: Of this machine: prices at which computing alone takes longer than the target
                are then left out from the start.
            window_s: Seconds for which a request counts; taken as 20 targets at least.
            give_back_s: Seconds from the dearest price to the lowest in a calm.
            clock: Seconds, never backwards.

        Raises:
            InputError: A value is out of range.
        """
        for name, value in (
            ("target_latency_ms", target_latency_ms),
            ("window_s", window_s),
            ("give_back_s", give_back_s),
        ):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name} is {value}; pass a finite number above 0")
        if penalty_range is None:
            raise InputError(
                "penalty_range is None: the agent is fixed to one penalty; pass the lowest and dearest price to take"
            )
        self._scale = PriceScale(*penalty_range)
        self._target_ms = target_latency_ms
        self._window_s = max(window_s, 20 * target_latency_ms / 1e3)
        self._give_back_s = give_back_s
        self._clock = clock
        self._lock = threading.Lock()
        self._floor, self._unreachable = _lowest_position(self._scale, curve, target_latency_ms)
        self._position = self._floor
        self._seen: deque[tuple[float, float]] = deque(maxlen=_MOST_REQUESTS)  # when, ms
        self._edge = -1.0  # the position that the last raise left
        self._judged = _Window()  # since the last raise
        self._recent = 0.0
        self._raises, self._raised_at, self._raised_by = 0, -math.inf, 0.0
        self._last_record = -math.inf
        self._moved_at = clock()

    @property
    def penalty(self) -> float:
        """The price for the next request."""
        with self._lock:
            self._give_back(self._clock())
            return self._scale.penalty(self._position)

    @property
    def p95_ms(self) -> float | None:
        """Of the requests in the window, None where there are none. Sorts them: not for every request."""
        return self.snapshot().p95_ms

    def record(self, latency_ms: float) -> None:
        """Tell what a request took, from its arrival to its answer; infinity for one that was dropped.

        Raises:
            InputError: It is negative or NaN.
        """
        if not latency_ms >= 0:
            raise InputError(f"latency_ms is {latency_ms}; pass milliseconds, 0 or more")
        ratio = min(float(latency_ms) / self._target_ms, _WORST)
        with self._lock:
            now = self._clock()
            self._give_back(now)
            if now - self._last_record > self._window_s:
                self._recent = 0.0
            self._last_record = now
            self._recent += _RECENT_WEIGHT * (ratio - self._recent)
            self._seen.append((now, float(latency_ms)))
            settled = now - self._raised_at >= self._target_ms / 1e3
            if settled:
                self._judged.add(now, ratio)
            if ratio > _LATE and (settled or ratio > _WORSE * self._raised_by):
                self._raise(now, ratio)

    def snapshot(self) -> GovernorState:
        """The state now."""
        with self._lock:
            now = self._clock()
            self._give_back(now)
            while self._seen and self._seen[0][0] < now - self._window_s:
                self._seen.popleft()
            latencies = sorted(latency for _, latency in self._seen)
            dearest = self._position >= 1
            return GovernorState(
                penalty=self._scale.penalty(self._position),
                position=self._position,
                p95_ms=latencies[math.ceil((1 - _TAIL) * len(latencies)) - 1] if latencies else None,
                requests=len(latencies),
                raises=self._raises,
                out_of_reach=dearest and (self._unreachable or self._judged.exceeds(self._judged.missed)),
            )

    def _raise(self, now: float, ratio: float) -> None:
        chronic = self._judged.exceeds(self._judged.late)
        if self._position >= 1 or not (self._recent > _LATE or chronic):
            return
        step = _STEP + _STEP_PER_EXCESS * max(0.0, self._recent - _LATE)
        self._edge = self._position
        self._position = min(1.0, self._position + min(step, _LARGEST_STEP))
        self._raises, self._raised_at, self._raised_by = self._raises + 1, now, ratio
        self._judged = _Window()

    def _give_back(self, now: float) -> None:
        """Take the time since the last call into account."""
        since = max(self._moved_at, self._raised_at + self._window_s)
        if not self._judged.quiet:  # until its last request is too old
            since = max(since, self._last_record + self._window_s)
        self._moved_at = now
        self._judged.drop(now - self._window_s)
        if now > since and self._judged.quiet:
            self._position = max(self._floor, self._lower((now - since) / self._give_back_s))

    def _lower(self, by: float) -> float:
        """The position lower by so much, or by less on the way over the edge."""
        position = self._position
        for end, slower in ((self._edge + _EDGE, 1.0), (self._edge, _EDGE_SLOWER), (-math.inf, 1.0)):
            step = min(by / slower, max(0.0, position - end))
            position -= step
            by -= step * slower
        return position


class _Window:
    """Requests at about one price, and how many of them are beyond each bound."""

    def __init__(self) -> None:
        self._requests: deque[tuple[float, float]] = deque()
        self.near = self.late = self.missed = 0

    def add(self, now: float, ratio: float) -> None:
        """Add a request; the oldest leaves a full window."""
        self._requests.append((now, ratio))
        self._count(ratio, 1)
        if len(self._requests) > _MOST_REQUESTS:
            self._count(self._requests.popleft()[1], -1)

    def drop(self, before: float) -> None:
        """Forget requests that ended earlier."""
        while self._requests and self._requests[0][0] < before:
            self._count(self._requests.popleft()[1], -1)

    @property
    def quiet(self) -> bool:
        """Whether the p95 is below near."""
        return self.near <= _TAIL * len(self._requests)

    def exceeds(self, count: int) -> bool:
        """Whether so many are more than the tail, one more being forgiven."""
        return len(self._requests) >= _FEWEST and count > 1 + _TAIL * len(self._requests)

    def _count(self, ratio: float, by: int) -> None:
        if ratio > _NEAR:
            self.near += by
            if ratio > _LATE:
                self.late += by
                if ratio > 1:
                    self.missed += by


def _lowest_position(scale: PriceScale, curve: LatencyCurve | None, target_ms: float) -> tuple[float, bool]:
    """Where computing alone meets the target, and whether it never does."""
    if curve is None:
        return 0.0, False
    try:
        return scale.position(curve.penalty_for(target_ms)), False
    except InputError:
        return 1.0, True
