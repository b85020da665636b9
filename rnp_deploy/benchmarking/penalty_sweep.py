"""Time a controller at several penalties, interleaved, and keep what it decided: curves are drawn from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.clock import WALL, Clock
from rnp_deploy.benchmarking.statistics import classes_of
from rnp_deploy.benchmarking.timing import Contender, Images, Timed, timed_in_turns, whole_batches
from rnp_deploy.controller import Controller
from rnp_deploy.errors import InputError
from rnp_deploy.progress import Progress, no_progress

__all__ = ["MOST_BATCHES", "PenaltyRuns", "PenaltySweep", "deciding", "sweep_penalties"]

#: Distinct batches that are timed in turn; each is run at every penalty before.
MOST_BATCHES = 32


@dataclass(frozen=True)
class PenaltyRuns:
    """A contender of a sweep.

    Attributes:
        contender: What was timed.
        timed: Its runs.
        predicted: ``[N]``, the class of every image.
        macs_share: ``[N]``, backbone MACs of every image ÷ the full network's.
    """

    contender: Contender
    timed: Timed
    predicted: NDArray[np.int64]
    macs_share: NDArray[np.float64]


@dataclass(frozen=True)
class PenaltySweep:
    """What :func:`sweep_penalties` measured; ``parts`` are the batches that were timed, the first of the N images."""

    penalties: dict[float, PenaltyRuns]
    dense: PenaltyRuns | None
    parts: tuple[Images, ...]


def sweep_penalties(
    controller: Controller,
    images: Images,
    penalties: Sequence[float],
    *,
    batch: int,
    duration_s: float,
    min_runs: int,
    dense: Contender | None = None,
    seed: int = 0,
    clock: Clock = WALL,
    progress: Progress = no_progress,
) -> PenaltySweep:
    """Run all images at every penalty, then time the first 32 batches by :func:`timed_in_turns`.

    Args:
        controller: Open; it stays open.
        images: float32 ``[N, C, H, W]``, N ≥ ``batch``; a last short batch is not timed.
        penalties: Rising.
        batch: Images per run.
        duration_s: Seconds of timed runs at least, as the mean over penalties and ``dense``.
        min_runs: Runs of each at least.
        dense: The full network, which takes turns too; gives outputs ``[N, ...]``.
        seed: Of the orders.
        clock: That times.
        progress: Told how far it is.

    Raises:
        InputError: Fewer images than a batch, penalties that do not rise.
        EngineError: As :meth:`rnp_deploy.Controller.run`.
    """
    _check(np.shape(images), batch, penalties)
    parts = [images[i : i + batch] for i in range(0, len(images), batch)]
    contenders: dict[float | None, Contender] = {price: deciding(controller, price) for price in penalties}
    if dense is not None:
        contenders[None] = dense
    decided = {}
    for i, price in enumerate(penalties):
        results = [controller.run(part, penalty=price) for part in parts]
        shares = np.concatenate([result.macs for result in results]) / controller.manifest.macs
        decided[price] = np.concatenate([classes_of(result.outputs) for result in results]), shares
        progress("deciding, penalties", i + 1, len(penalties))
    whole = tuple(whole_batches(images, batch, MOST_BATCHES))
    timed = timed_in_turns(
        contenders,
        whole,
        duration_s=duration_s,
        min_runs=min_runs,
        seed=seed,
        clock=clock,
        progress=progress,
    ).timed
    runs = {price: PenaltyRuns(contenders[price], timed[price], *decided[price]) for price in penalties}
    if dense is None:
        return PenaltySweep(runs, None, whole)
    classes = np.concatenate([classes_of(dense(i, part)) for i, part in enumerate(parts)])
    return PenaltySweep(runs, PenaltyRuns(dense, timed[None], classes, np.ones(len(images))), whole)


def deciding(controller: Controller, penalty: float | None) -> Contender:
    """The controller with its agent."""
    return lambda _, part: controller.run(part, penalty=penalty)


def _check(shape: tuple[int, ...], batch: int, penalties: Sequence[float]) -> None:
    count = shape[0] if shape else 0
    if batch < 1 or count < batch:
        raise InputError(f"{count} images do not fill a batch of {batch}")
    if not len(penalties) or not np.isfinite(penalties).all() or list(penalties) != sorted(set(penalties)):
        raise InputError(f"penalties are {list(penalties)}; pass one or more finite numbers that rise")
