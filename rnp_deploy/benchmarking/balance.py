"""The balance of speed and accuracy: what each penalty costs, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.measures import Energy
from rnp_deploy.benchmarking.penalty_sweep import PenaltyRuns, PenaltySweep
from rnp_deploy.benchmarking.report import Balance, BalancePoint
from rnp_deploy.benchmarking.statistics import bootstrap_interval, latency_report, pareto
from rnp_deploy.benchmarking.timing import Contender, Images
from rnp_deploy.errors import InputError

__all__ = ["balance_of"]

_UNMEASURED = Energy(reason="energy was not asked for")


def balance_of(
    sweep: PenaltySweep,
    labels: NDArray[np.int64] | None = None,
    *,
    energy: Callable[[Contender, Sequence[Images]], Energy] | None = None,
    seed: int = 0,
) -> Balance:
    """Points of a sweep, with intervals and Pareto marks.

    Args:
        sweep: Of one penalty or more.
        labels: ``[N]`` class indices of its images.
        energy: Measures a contender over batches; called once a penalty, and runs it.
        seed: Of the bootstrap; all penalties draw the same images.

    Raises:
        InputError: Labels of another length, fewer runs than a median needs.
    """
    images = len(next(iter(sweep.penalties.values())).predicted)
    if labels is not None and np.shape(labels) != (images,):
        raise InputError(f"labels of shape {np.shape(labels)} for {images} images; pass one class index each")
    points = [
        _point(
            price, runs, labels, _UNMEASURED if energy is None else energy(runs.contender, sweep.parts), seed
        )
        for price, runs in sweep.penalties.items()
    ]
    if labels is not None:
        marks = pareto([(point.p50.ms, point.accuracy or 0.0) for point in points])
        points = [p.model_copy(update={"pareto": mark}) for p, mark in zip(points, marks, strict=True)]
    dense = sweep.dense
    return Balance(
        points=tuple(points),
        dense_p50_ms=None if dense is None else float(np.median(dense.timed.latencies_ms)),
        dense_accuracy=None if dense is None or labels is None else float((dense.predicted == labels).mean()),
    )


def _point(
    price: float, runs: PenaltyRuns, labels: NDArray[np.int64] | None, energy: Energy, seed: int
) -> BalancePoint:
    latency = latency_report(runs.timed.latencies_ms)
    if latency.p50 is None:
        raise InputError(
            f"there is {latency.runs} run of a penalty; a median needs 2 or more: raise min_runs"
        )
    macs_low, macs_high = bootstrap_interval(runs.macs_share, np.mean, seed=seed)
    correct = None if labels is None else (runs.predicted == labels).astype(np.float64)
    low, high = (None, None) if correct is None else bootstrap_interval(correct, np.mean, seed=seed)
    return BalancePoint(
        penalty=price,
        macs_share=float(runs.macs_share.mean()),
        macs_share_low=macs_low,
        macs_share_high=macs_high,
        accuracy=None if correct is None else float(correct.mean()),
        accuracy_low=low,
        accuracy_high=high,
        p50=latency.p50,
        p95_ms=None if latency.p95 is None else latency.p95.ms,
        p99=latency.p99,
        runs=latency.runs,
        energy=energy,
        pareto=None,
    )
