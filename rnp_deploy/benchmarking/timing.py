"""Time contenders in turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.clock import WALL, Clock
from rnp_deploy.progress import Progress, no_progress

__all__ = [
    "Contender",
    "DeviceTimer",
    "Images",
    "Measurement",
    "Timed",
    "old_objects_left_alone",
    "timed_in_turns",
    "whole_batches",
]

_WINDOW = 5  # rounds whose median is compared with that of as many before
_STABLE_WITHIN = 0.05
_WARM_UP_MOST = 10.0  # seconds, or times the least

Images = NDArray[np.float32]
#: Of the index of a batch, and the batch; returns when all is computed.
Contender = Callable[[int, Images], Any]
#: Called before a run; what it returns is called after it, and gives milliseconds. See ``CudaMemory.timer``.
DeviceTimer = Callable[[], Callable[[], float]]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Timed:
    """Runs of one contender, by round.

    Attributes:
        latencies_ms: ``[rounds]``, wall time of a whole batch.
        batch_of: ``[rounds]``, the index of the batch; the same for all contenders.
        started_ms: ``[rounds]``, since the start of the measurement.
        device_ms: ``[rounds]``, between events of the device around a run; None on a host.
    """

    latencies_ms: NDArray[np.float64]
    batch_of: NDArray[np.int64]
    started_ms: NDArray[np.float64]
    device_ms: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Measurement(Generic[Key]):
    """What :func:`timed_in_turns` measured; ``stable`` is whether the warm-up came to an end of its own."""

    timed: dict[Key, Timed]
    warm_up_s: float
    stable: bool


@dataclass(frozen=True)
class _Run:
    batch: int
    before_ns: int
    took_ms: float
    device_ms: float | None


def whole_batches(images: Images, batch: int, most: int) -> list[Images]:
    """The first batches, ``most`` of them at most; a last short one is left out."""
    starts = range(0, len(images) - batch + 1, batch)[:most]
    return [images[start : start + batch] for start in starts]


def timed_in_turns(
    contenders: Mapping[Key, Contender],
    parts: Sequence[Images],
    *,
    duration_s: float,
    min_runs: int,
    warm_up_s: float = 0.2,
    seed: int = 0,
    clock: Clock = WALL,
    device_timer: DeviceTimer | None = None,
    progress: Progress = no_progress,
) -> Measurement[Key]:
    """Time contenders, interleaved.

    A round runs every contender once, on the same batch; rounds go through the batches in turn. The order is drawn
    anew for every round: whoever runs after a contender finds the caches that it left, and where orders repeat, or
    are turned round, the same ones always run after one another, and on the same batches.

    Before, every contender sees every batch once, so that engines are open and memory is there; then rounds are run
    and left out until there were ``warm_up_s`` of them, and the median time of a round differs by less than 5 % from
    that of as many rounds before on the same batches. What is not stable in 10 s and ten rounds, or ten times
    ``warm_up_s`` where that is more, is timed nevertheless.

    Args:
        contenders: Name → what is timed; one at least.
        parts: float32 ``[N, C, H, W]`` each, of one N; one at least.
        duration_s: Seconds of timed runs at least, as the mean over contenders.
        min_runs: Runs of each at least; 1 or more.
        warm_up_s: Seconds.
        seed: Of the orders.
        clock: That times.
        device_timer: That times the device's work beside; its own calls are not in the wall time.
        progress: Told of the warm-up and of rounds.
    """
    began_ns = clock.now_ns()
    for i in range(len(parts)):
        for run in contenders.values():
            run(i, parts[i])
        progress("warming up, batches", i + 1, len(parts))
    rng, names = np.random.default_rng(seed), list(contenders)

    def one_round(i: int) -> dict[Key, _Run]:
        drawn = [names[k] for k in rng.permutation(len(names))]
        return {name: _run(contenders[name], i, parts[i], clock, device_timer) for name in drawn}

    rounds: list[dict[Key, _Run]] = []
    spent_ms, wanted_ms, reported = 0.0, 1e3 * duration_s * len(names), 0
    with old_objects_left_alone():
        stable = _warm_up(one_round, len(parts), warm_up_s, clock)
        started_ns = clock.now_ns()
        while len(rounds) < min_runs or spent_ms < wanted_ms:
            rounds.append(one_round(len(rounds) % len(parts)))
            spent_ms += _total_ms(rounds[-1])
            share = min(len(rounds) / min_runs, spent_ms / wanted_ms if wanted_ms else 1.0, 1.0)
            if int(100 * share) > reported:
                reported = int(100 * share)
                progress("timing, percent", reported, 100)
    timed = {name: _timed([done[name] for done in rounds], started_ns) for name in names}
    return Measurement(timed, (started_ns - began_ns) / 1e9, stable)


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Python's collector runs as ever, but over what is made from here on: a benchmark holds more than a server does."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _warm_up(one_round: Callable[[int], dict[Key, _Run]], parts: int, warm_up_s: float, clock: Clock) -> bool:
    """Whether it became stable; any window of rounds has the same batches, whose work may differ."""
    began_ns, totals_ms, stable = clock.now_ns(), list[float](), False
    most_s = max(_WARM_UP_MOST, _WARM_UP_MOST * warm_up_s)

    def is_over() -> bool:
        spent_s = (clock.now_ns() - began_ns) / 1e9
        return spent_s >= warm_up_s and (stable or (spent_s >= most_s and len(totals_ms) >= 2 * _WINDOW))

    while not is_over():
        totals_ms.append(_total_ms(one_round(len(totals_ms) % _WINDOW % parts)))
        before, last = np.array(totals_ms[-2 * _WINDOW : -_WINDOW]), np.array(totals_ms[-_WINDOW:])
        if len(before) == _WINDOW:
            stable = bool(abs(np.median(last) - np.median(before)) <= _STABLE_WITHIN * np.median(before))
    return stable


def _run(contender: Contender, i: int, part: Images, clock: Clock, device_timer: DeviceTimer | None) -> _Run:
    stop = None if device_timer is None else device_timer()
    before_ns = clock.now_ns()
    contender(i, part)
    took_ms = (clock.now_ns() - before_ns) / 1e6
    return _Run(i, before_ns, took_ms, None if stop is None else stop())


def _total_ms(done: Mapping[Key, _Run]) -> float:
    return sum(run.took_ms for run in done.values())


def _timed(runs: Sequence[_Run], started_ns: int) -> Timed:
    device_ms = [run.device_ms for run in runs if run.device_ms is not None]
    return Timed(
        latencies_ms=np.array([run.took_ms for run in runs]),
        batch_of=np.array([run.batch for run in runs], np.int64),
        started_ms=np.array([run.before_ns - started_ns for run in runs]) / 1e6,
        device_ms=np.array(device_ms) if device_ms else None,
    )
