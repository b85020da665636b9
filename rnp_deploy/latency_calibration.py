"""Measure the latency curve of a controller on the machine it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnp_deploy.benchmarking.clock import WALL, Clock
from rnp_deploy.benchmarking.environment import machine_environment
from rnp_deploy.benchmarking.penalty_sweep import MOST_BATCHES, PenaltySweep, sweep_penalties
from rnp_deploy.benchmarking.timing import Images
from rnp_deploy.bundle.engine_set import LATENCY_FILE, is_engine_set
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.controller import Controller
from rnp_deploy.errors import BundleError, InputError
from rnp_deploy.latency import LatencyCurve, LatencyPoint, read_latency_curve, save_latency_curve
from rnp_deploy.price_scale import PriceScale
from rnp_deploy.progress import Progress, no_progress
from rnp_deploy.pruning_settings import PENALTY_RANGE

__all__ = ["calibrate_engine_set", "default_penalties", "latency_curve_of", "measure_latency_curve"]

_POINTS = 12
_FEWEST_RUNS = 20  # with fewer no run lies beyond the p95


def default_penalties(manifest: Manifest) -> tuple[float, ...]:
    """About 12 rising penalties: of the calibrated points where there are any, or even over the range.

    Calibrated points lie closer where the cost falls fast. An agent without a range of prices is
    measured over the default one.
    """
    if manifest.calibration is not None:
        points = manifest.calibration.points
        kept = np.unique(np.linspace(0, len(points) - 1, _POINTS).round().astype(int))
        return tuple(points[i].penalty for i in kept)
    scale = PriceScale(*(manifest.agent.penalty_range or PENALTY_RANGE))
    return tuple(scale.penalty(float(position)) for position in np.linspace(0, 1, _POINTS))


def measure_latency_curve(
    controller: Controller,
    images: Images,
    *,
    batch: int = 1,
    penalties: Sequence[float] | None = None,
    duration_s: float = 20.0,
    min_runs: int = 100,
    threads: int | None = None,
    data: str = "unnamed",
    clock: Clock = WALL,
    progress: Progress = no_progress,
) -> LatencyCurve:
    """Time a controller at several penalties, interleaved.

    The first 32 batches are timed by :func:`rnp_deploy.benchmarking.timing.timed_in_turns`, so that no engine is
    opened while the clock runs. The controller should have the machine to itself.

    Args:
        controller: Open; it stays open.
        images: float32 ``[N, C, H, W]``, N ≥ ``batch``, like those to come: latency depends on
            what the agent decides for them.
        batch: Images per run; a last short batch is left out.
        penalties: Rising; None is :func:`default_penalties`.
        duration_s: Seconds of timed runs at least, for all penalties together.
        min_runs: Runs of each penalty at least; 20 or more.
        threads: What the controller was loaded with, for the record.
        data: What the images are, for the record.
        clock: That times.
        progress: Told how far it is.

    Raises:
        InputError: Fewer images than a batch, fewer runs than a p95 needs, penalties that do not rise.
        EngineError: As :meth:`rnp_deploy.Controller.run`.
    """
    prices = default_penalties(controller.manifest) if penalties is None else tuple(map(float, penalties))
    _check_runs(min_runs)
    sweep = sweep_penalties(
        controller,
        images[: MOST_BATCHES * batch] if np.ndim(images) else images,
        prices,
        batch=batch,
        duration_s=duration_s / max(len(prices), 1),
        min_runs=min_runs,
        clock=clock,
        progress=progress,
    )
    return latency_curve_of(sweep, threads=threads, data=data)


def latency_curve_of(sweep: PenaltySweep, *, threads: int | None, data: str) -> LatencyCurve:
    """The curve of a sweep: of the batches that were timed, and what was decided for these.

    Args:
        sweep: Of 20 runs or more.
        threads: What the controller was loaded with, for the record.
        data: What the images are, for the record.

    Raises:
        InputError: There are fewer runs than a p95 needs.
    """
    timed_images = sum(map(len, sweep.parts))
    runs = len(next(iter(sweep.penalties.values())).timed.latencies_ms)
    _check_runs(runs)
    points = []
    for price, at_price in sweep.penalties.items():
        p50, p95 = np.percentile(at_price.timed.latencies_ms, [50, 95])
        share = float(at_price.macs_share[:timed_images].mean())
        points.append(LatencyPoint(penalty=price, macs_share=share, p50_ms=float(p50), p95_ms=float(p95)))
    return LatencyCurve(
        batch=len(sweep.parts[0]),
        threads=threads,
        data=data,
        images=timed_images,
        runs=runs,
        environment=machine_environment(threads),
        points=tuple(points),
    )


def calibrate_engine_set(
    path: Path, images: Images, *, threads: int | None = None, **how: Any
) -> LatencyCurve:
    """Measure an engine set's curve, and write it into the set, in the place of one for the same batch and threads.

    Args:
        path: Of the engine set.
        images: As for :func:`measure_latency_curve`.
        threads: Threads that compute; None is one per core.
        how: More arguments of :func:`measure_latency_curve`.

    Raises:
        InputError, EngineError: As there, or ``path`` is a bundle, which holds for no machine.
        BundleError, EngineSetMismatchError: As :meth:`rnp_deploy.Controller.load`.
        OutputError: The curve cannot be written.
    """
    if not is_engine_set(path):
        raise InputError(f"{path} is no engine set, and latencies are a machine's: rnp-build makes one")
    with Controller.load(path, threads=threads) as controller:
        curve = measure_latency_curve(controller, images, threads=threads, **how)
    file = path / LATENCY_FILE
    try:
        measured = read_latency_curve(file)
    except BundleError:  # there is none, or none that can be kept
        measured = ()
    others = [c for c in measured if (c.batch, c.threads) != (curve.batch, curve.threads)]
    save_latency_curve([*others, curve], file)
    return curve


def _check_runs(runs: int) -> None:
    if runs < _FEWEST_RUNS:
        raise InputError(f"a p95 needs {_FEWEST_RUNS} runs or more, not {runs}: raise min_runs")
