"""Percentiles, intervals and noise of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnp_deploy.benchmarking.measures import Latency, Percentile
from rnp_deploy.errors import InputError

__all__ = ["bootstrap_interval", "classes_of", "entropy_bits", "latency_report", "pareto"]

_PER_MILLE = {"p50": 500, "p90": 900, "p95": 950, "p99": 990, "p99_9": 999}
_TAIL = 0.025  # outside of a 95 % interval, on each side
_BLOCKS = 10

Values = NDArray[np.float64]


def latency_report(
    latencies_ms: Values, batch_of: NDArray[np.int64] | None = None, *, device_ms: Values | None = None
) -> Latency:
    """What is reported of the latencies of one contender.

    An interval takes runs to be independent; where no run lies beyond one of its ends, that end is the fastest or
    slowest run, and it covers less than 95 %.

    Args:
        latencies_ms: ``[runs]``, in order of time.
        batch_of: ``[runs]``, which batch of images each was of; None: all of one.
        device_ms: ``[runs]`` by the events of the device.

    Raises:
        InputError: There is no run.
    """
    runs = len(latencies_ms)
    if runs == 0:
        raise InputError("there are no latencies to report: nothing was timed")
    blocks = np.array_split(latencies_ms, max(1, min(_BLOCKS, runs // 2)))
    batch_of = np.zeros(runs, np.int64) if batch_of is None else batch_of
    return Latency(
        runs=runs,
        mean_ms=float(latencies_ms.mean()),
        typical_ms=float(np.mean([np.median(row) for row in _by_batch(latencies_ms, batch_of)])),
        cv=_variation(latencies_ms, batch_of),
        quantiles_ms=tuple(np.percentile(latencies_ms, np.arange(101)).tolist()),
        block_p50_ms=tuple(float(np.median(block)) for block in blocks),
        device_mean_ms=None if device_ms is None else float(device_ms.mean()),
        **{name: _percentile(latencies_ms, per_mille) for name, per_mille in _PER_MILLE.items()},
    )


def _percentile(latencies_ms: Values, per_mille: int) -> Percentile | None:
    """By linear interpolation; None where the runs are too few to hold one beyond it.

    The ends of the interval are order statistics by ranks of the binomial distribution (Conover, Practical
    Nonparametric Statistics, 3rd edition, section 3.2), which is summed up, not approximated: of n runs, B ~ Bin(n, q)
    are at most the quantile, and the l-th smallest is above it with probability P(B < l).
    """
    n, q = len(latencies_ms), per_mille / 1000
    if n * (1000 - per_mille) < 1000:
        return None
    steps = np.log((n - np.arange(n)) / np.arange(1, n + 1) * q / (1 - q))
    logs = np.concatenate([[0.0], np.cumsum(steps)])  # of P(B = 0..n), but for one summand
    below = np.cumsum(np.exp(logs - logs.max()))
    low, high = np.searchsorted(
        below / below[-1], [_TAIL, 1 - _TAIL], side="left"
    )  # ranks from 1: P(B < low) < 2.5 %
    rising = np.sort(latencies_ms)
    return Percentile(
        ms=float(np.percentile(rising, 100 * q)),
        low_ms=float(rising[max(low, 1) - 1]),
        high_ms=float(rising[min(high + 1, n) - 1]),
    )


def _variation(latencies_ms: Values, batch_of: NDArray[np.int64]) -> float | None:
    """Standard deviation within batches, each in medians of its own, ÷ the mean.

    Each batch takes one degree of freedom, so that few runs of many batches do not look steadier than they are.
    """
    rows = _by_batch(latencies_ms, batch_of)
    ratios = [row / np.median(row) for row in rows if len(row) > 1 and np.median(row) > 0]
    if not ratios:
        return None
    squares = sum(float(((row - row.mean()) ** 2).sum()) for row in ratios)
    freedom = sum(len(row) - 1 for row in ratios)
    return float(np.sqrt(squares / freedom) / np.concatenate(ratios).mean())


def _by_batch(latencies_ms: Values, batch_of: NDArray[np.int64]) -> list[Values]:
    return [latencies_ms[batch_of == batch] for batch in np.unique(batch_of)]


def bootstrap_interval(
    values: NDArray[Any], statistic: Callable[[NDArray[Any]], float], *, seed: int, draws: int = 1000
) -> tuple[float, float]:
    """The 2.5 and 97.5 % points of a statistic over samples drawn from the values with replacement.

    Efron's percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13).

    Args:
        values: ``[n]`` or ``[n, m]``, n independent observations.
        statistic: Of an array of that shape.
        seed: The same one gives the same interval.
        draws: How many samples.

    Raises:
        InputError: There are no values.
    """
    if len(values) == 0:
        raise InputError("there are no values to draw from; an interval needs one at least")
    rng = np.random.default_rng(seed)
    drawn = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(draws)]
    low, high = np.percentile(drawn, [100 * _TAIL, 100 * (1 - _TAIL)])
    return float(low), float(high)


def classes_of(outputs: NDArray[Any]) -> NDArray[np.int64]:
    """``[N]``, where the largest of each of ``outputs`` ``[N, ...]`` is."""
    classes: NDArray[np.int64] = outputs.reshape(len(outputs), -1).argmax(axis=1)
    return classes


def entropy_bits(counts: ArrayLike) -> float:
    """Shannon's entropy of what was counted, ``[n]``; 0 where all fell on one, or there was nothing."""
    counted = np.asarray(counts, np.float64)
    shares = counted[counted > 0] / counted.sum()
    return float((shares * np.log2(1 / shares)).sum())


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of (cost, gain): True where no other is at most as dear and at least as good, and better in one."""
    return [
        not any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in points)
        for cost, gain in points
    ]
