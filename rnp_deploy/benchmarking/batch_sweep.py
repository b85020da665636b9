"""Batch sizes side by side: the policies for images that decide differently, and the dense network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rnp_deploy.benchmarking.clock import WALL, Clock
from rnp_deploy.benchmarking.report import BatchPoint, BatchSweep, PaysFrom
from rnp_deploy.benchmarking.timing import Contender, Images, timed_in_turns, whole_batches
from rnp_deploy.controller import Controller
from rnp_deploy.errors import InputError
from rnp_deploy.progress import Progress, no_progress

__all__ = ["DENSE", "POLICIES", "sweep_batches"]

POLICIES = ("regroup", "serial", "round-up")
DENSE = "dense"
_MOST_PARTS = 64  # distinct batches of one size


def sweep_batches(
    controller: Controller,
    images: Images,
    *,
    batches: Sequence[int],
    penalty: float | None = None,
    dense: Callable[[int], Contender] | None = None,
    duration_s: float = 3.0,
    min_runs: int = 100,
    seed: int = 0,
    clock: Clock = WALL,
    progress: Progress = no_progress,
) -> BatchSweep:
    """Time every policy and the dense network at every batch size, in turns on the same images.

    Args:
        controller: Deciding by itself.
        images: float32 ``[N, C, H, W]``; of each size the first full batches, 64 at most.
        batches: Sizes, in any order.
        penalty: Price of one more group; None is the agent's own.
        dense: Makes the dense network's contender for a batch size; None: it is left out.
        duration_s: Seconds of timed runs at least, for one size, as the mean over what takes turns.
        min_runs: Runs of each at least.
        seed: Of the orders.
        clock: That times.
        progress: Told of the warm-up and of runs, anew for every size.

    Returns:
        Points at rising sizes; ``ms_per_image`` is by the median, ``images_per_s`` by the mean. Pairs for ``pays_from``
        go by ``ms_per_image``; among policies batches of one are left out, which all compute alike.

    Raises:
        InputError: No sizes, sizes below 1, or too few images for some.
        EngineError: As :meth:`rnp_deploy.Controller.run`.
    """
    sizes = sorted(set(batches))
    if not sizes or sizes[0] < 1:
        raise InputError(f"batch sizes are {list(batches)}; pass one or more, of 1 or more")
    too_large = [str(size) for size in sizes if size > len(images)]
    if too_large:
        raise InputError(
            f"{len(images)} images do not fill a batch of {', '.join(too_large)}; pass more images, or smaller sizes"
        )

    def under(policy: str) -> Contender:
        return lambda _, part: controller.run(part, penalty=penalty, policy=policy).outputs

    points = []
    for size in sizes:
        contenders = {policy: under(policy) for policy in POLICIES}
        if dense is not None:
            contenders[DENSE] = dense(size)
        measured = timed_in_turns(
            contenders,
            whole_batches(images, size, _MOST_PARTS),
            duration_s=duration_s,
            min_runs=min_runs,
            seed=seed,
            clock=clock,
            progress=progress,
        )
        points += [_point(size, name, timed.latencies_ms) for name, timed in measured.timed.items()]
    return BatchSweep(points=tuple(points), pays_from=_pays_from(points, dense is not None))


def _point(batch: int, policy: str, latencies_ms: np.ndarray[tuple[int], np.dtype[np.float64]]) -> BatchPoint:
    p50_ms = float(np.median(latencies_ms))
    return BatchPoint(
        batch=batch,
        policy=policy,
        p50_ms=p50_ms,
        ms_per_image=p50_ms / batch,
        images_per_s=1e3 * batch / float(np.mean(latencies_ms)),
        runs=len(latencies_ms),
    )


def _pays_from(points: Sequence[BatchPoint], with_dense: bool) -> tuple[PaysFrom, ...]:
    pairs = [("regroup", "serial"), ("round-up", "serial")]
    pairs += [(policy, DENSE) for policy in POLICIES] if with_dense else []
    costs: dict[str, dict[int, float]] = {}
    for point in points:
        costs.setdefault(point.policy, {})[point.batch] = point.ms_per_image
    return tuple(
        PaysFrom(
            policy=policy, over=over, batch=_faster_from(costs[policy], costs[over], 1 + (over != DENSE))
        )
        for policy, over in pairs
    )


def _faster_from(costs: Mapping[int, float], over: Mapping[int, float], least: int) -> int | None:
    """The smallest size, of ``least`` or more, from which on costs are below those others."""
    found = None
    for size in sorted(costs, reverse=True):
        if size < least or costs[size] >= over[size]:
            break
        found = size
    return found
