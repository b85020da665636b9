"""Measure the latency curve of a controller on the machine it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.bundle.engine_set import LATENCY_FILE, is_engine_set
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.controller import Controller
from rnp_deploy.errors import BundleError, InputError
from rnp_deploy.latency import LatencyCurve, LatencyPoint, read_latency_curve, save_latency_curve
from rnp_deploy.price_scale import PriceScale
from rnp_deploy.profiling import Contender, environment, timed_in_turns
from rnp_deploy.progress import Progress, no_progress
from rnp_deploy.pruning_settings import PENALTY_RANGE

__all__ = ["calibrate_engine_set", "default_penalties", "measure_latency_curve"]

_POINTS = 12
_MOST_BATCHES = 32  # distinct batches that are timed in turn; each is run once at every penalty before
_FEWEST_RUNS = 20  # with fewer no run lies beyond the p95

Images = NDArray[np.float32]


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
    progress: Progress = no_progress,
) -> LatencyCurve:
    """Time a controller at several penalties, interleaved.

    Each round runs every penalty once, on the same batch, one round from the lowest up and the
    next from the highest down; rounds go through the images until both ``duration_s`` and
    ``min_runs`` are reached. Before, every batch is seen once at every penalty, so that no engine
    is opened while the clock runs. The controller should have the machine to itself.

    Args:
        controller: Open; it stays open.
        images: float32 ``[N, C, H, W]``, N ≥ ``batch``, like those to come: latency depends on
            what the agent decides for them.
        batch: Images per run; a last short batch is left out.
        penalties: Rising; None is :func:`default_penalties`.
        duration_s: Seconds at least, for all penalties together.
        min_runs: Runs of each penalty at least; 20 or more.
        threads: What the controller was loaded with, for the record.
        data: What the images are, for the record.
        progress: Told of rounds.

    Raises:
        InputError: Fewer images than a batch, fewer runs than a p95 needs, penalties that do not rise.
        EngineError: As :meth:`rnp_deploy.Controller.run`.
    """
    prices = default_penalties(controller.manifest) if penalties is None else tuple(map(float, penalties))
    _check(np.shape(images), batch, prices, min_runs)
    parts = [images[i : i + batch] for i in range(0, len(images) - batch + 1, batch)][:_MOST_BATCHES]
    shares = [_macs_share(controller, parts, price) for price in prices]
    contenders = {price: _at(controller, price) for price in prices}
    latencies_ms = timed_in_turns(contenders, parts, duration_s, min_runs, progress)
    points = []
    for price, share in zip(prices, shares, strict=True):
        p50, p95 = np.percentile(latencies_ms[price], [50, 95])
        points.append(LatencyPoint(penalty=price, macs_share=share, p50_ms=float(p50), p95_ms=float(p95)))
    return LatencyCurve(
        batch=batch,
        threads=threads,
        data=data,
        images=batch * len(parts),
        runs=len(latencies_ms[prices[0]]),
        environment=environment(threads),
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


def _check(shape: tuple[int, ...], batch: int, prices: Sequence[float], min_runs: int) -> None:
    count = shape[0] if shape else 0
    if batch < 1 or count < batch:
        raise InputError(f"{count} images do not fill a batch of {batch}")
    if min_runs < _FEWEST_RUNS:
        raise InputError(f"min_runs is {min_runs}; a p95 needs {_FEWEST_RUNS} runs or more")
    if not prices or not np.isfinite(prices).all() or list(prices) != sorted(set(prices)):
        raise InputError(f"penalties are {list(prices)}; pass one or more finite numbers that rise")


def _at(controller: Controller, price: float) -> Contender:
    return lambda _, part: controller.run(part, penalty=price)


def _macs_share(controller: Controller, parts: Sequence[Images], price: float) -> float:
    macs = np.concatenate([controller.run(part, penalty=price).macs for part in parts])
    return float(macs.mean() / controller.manifest.macs)
