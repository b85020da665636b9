"""Each branch timed within whole runs, and what these times say that a run should take."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.clock import WALL, Clock
from rnp_deploy.benchmarking.report import Expected, PieceReport
from rnp_deploy.benchmarking.split import MeasuredController, RunTimes
from rnp_deploy.benchmarking.timing import Contender, Images, timed_in_turns, whole_batches
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.dtypes import storage_dtype
from rnp_deploy.errors import InputError
from rnp_deploy.plan import Piece, Plan, Step
from rnp_deploy.progress import Progress, no_progress

__all__ = ["TimedPieces", "covering_paths", "expected_latency", "time_pieces"]

_MOST_BATCHES = 8  # of each path: what a branch takes does not depend on what is in an image

Path: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class TimedPieces:
    """Reports of all pieces in the order of the plan, and the mean latency of what was run beside, or None."""

    pieces: tuple[PieceReport, ...]
    beside_ms: float | None


def covering_paths(plan: Plan, option_counts: Sequence[int]) -> list[Path]:
    """Few paths, one option per decision, that together take every piece of a plan at least once.

    Each goes through the steps in order and takes a piece that no earlier path took, wherever what it chose so
    far leaves one: stages that depend on two decisions of k options in a row need k² paths, and get as many.
    """
    left = [dict.fromkeys(sorted(piece.options for piece in step.pieces)) for step in plan.steps]
    paths = []
    while any(left):
        chosen: dict[int, int] = {}
        for step, untaken in zip(plan.steps, left, strict=True):
            fixed = [chosen.get(t) for t in step.option_decisions]
            fitting = (k for k in untaken if all(f in (None, o) for f, o in zip(fixed, k, strict=True)))
            chosen.update(zip(step.option_decisions, next(fitting, ()), strict=False))
        path = tuple(chosen.get(t, 1) for t in range(len(option_counts)))
        for step, untaken in zip(plan.steps, left, strict=True):
            untaken.pop(_key(step, path), None)
        paths.append(path)
    return paths


def time_pieces(
    measured: MeasuredController,
    images: NDArray[np.float32],
    *,
    beside: Callable[[], object] | None = None,
    penalty: float | None = None,
    batch: int = 1,
    min_runs: int = 20,
    duration_s: float = 3.0,
    seed: int = 0,
    clock: Clock = WALL,
    progress: Progress = no_progress,
) -> TimedPieces:
    """Time every piece in its place: whole runs of all covering paths and, for agent steps, of the agent, in turns.

    Turns are those of :func:`rnp_deploy.benchmarking.timing.timed_in_turns`, on at most 8 batches. The agent's own
    runs are rounded up, so that the batch stays together.

    Args:
        measured: What was measured in it before is dropped.
        images: float32 ``[N, C, H, W]``, N ≥ ``batch``.
        beside: Run once a round, such as the plain controller on the next of its batches; for
            :func:`expected_latency`, so that what else the machine does falls on both alike.
        penalty: Of the agent's own runs.
        batch: Images of a run.
        min_runs: Rounds at least, and so runs of each piece.
        duration_s: Seconds at least, of all paths together.
        seed: Of the orders.
        clock: That rounds are told by.
        progress: Told of rounds.

    Raises:
        InputError: Fewer images than a batch.
        EngineError: As :meth:`rnp_deploy.controller.Controller.run`.
    """
    if batch < 1 or len(images) < batch:
        raise InputError(f"{len(images)} images do not fill a batch of {batch}")
    plan, manifest = measured.plan, measured.manifest
    agent_files = {piece.file for step in plan.steps if step.agent_only for piece in step.pieces}
    turns: list[Path | None] = [
        *covering_paths(plan, manifest.option_counts),
        *([None] if agent_files else []),
    ]
    runs: dict[Path | None, list[RunTimes]] = {path: [] for path in turns}

    def contender(path: Path | None) -> Contender:
        def run(_: int, part: Images) -> None:
            measured.take()
            if path is None:
                measured.run(part, penalty=penalty, policy="round-up")
            else:
                measured.run(part, options=np.tile(path, (batch, 1)))
            runs[path] += measured.take()

        return run

    contenders: dict[Path | str | None, Contender] = {path: contender(path) for path in turns}
    if beside is not None:
        contenders["beside"] = lambda *_: beside()
    parts = whole_batches(images, batch, _MOST_BATCHES)
    timed = timed_in_turns(
        contenders,
        parts,
        duration_s=duration_s / len(contenders),
        min_runs=min_runs,
        seed=seed,
        clock=clock,
        progress=progress,
    ).timed
    times_ms: dict[str, list[float]] = defaultdict(list)
    for path, times in runs.items():
        for run in times[-len(timed[path].latencies_ms) :]:  # those before warmed up
            for file, ms in _piece_times(run).items():
                if path is not None or file in agent_files:  # the branches have turns of their own
                    times_ms[file].append(ms)
    reports = [
        _report(
            i,
            step,
            piece,
            manifest,
            _bytes_moved(step, piece, plan, batch),
            batch,
            np.array(times_ms[piece.file]),
        )
        for i, step in enumerate(plan.steps)
        for piece in step.pieces
    ]
    return TimedPieces(
        tuple(r.model_copy(update={"not_faster_than": _not_faster_than(r, reports)}) for r in reports),
        None if beside is None else float(timed["beside"].latencies_ms.mean()),
    )


def expected_latency(
    pieces: Sequence[PieceReport],
    options: NDArray[np.int64],
    plan: Plan,
    measured_ms: float,
    batch: int,
) -> Expected:
    """The mean over images of the sum of the mean times of their pieces, beside what was measured.

    Args:
        pieces: Of all steps of the plan.
        options: ``[N, T]``, as decided.
        plan: That was run.
        measured_ms: Mean of runs in which the agent decided, of these images alike.
        batch: Images of a run.
    """
    if batch != 1:
        return Expected(reason=f"of runs of one image alone; these were of {batch}, which share pieces")
    mean_ms = {(piece.step, piece.options): piece.mean_ms for piece in pieces}
    paths, images = np.unique(options, axis=0, return_counts=True)
    sums_ms = [
        sum(mean_ms[i, _key(step, path)] for i, step in enumerate(plan.steps)) for path in paths.tolist()
    ]
    expected_ms = float(np.average(sums_ms, weights=images))
    return Expected(expected_ms=expected_ms, measured_ms=measured_ms, ratio=expected_ms / measured_ms)


def _key(step: Step, path: Sequence[int]) -> Path:
    return tuple(path[t] for t in step.option_decisions)


def _piece_times(run: RunTimes) -> dict[str, float]:
    """File → ms in the run, of all parts of the batch."""
    in_all: dict[str, float] = defaultdict(float)
    for file, ms in run.calls:
        in_all[file] += ms
    return in_all


def _report(
    i: int,
    step: Step,
    piece: Piece,
    manifest: Manifest,
    bytes_moved: int,
    batch: int,
    times_ms: NDArray[np.float64],
) -> PieceReport:
    macs = piece.macs
    if step.agent_only and step.decides is not None:
        macs = manifest.agent.steps[step.decides].macs
    p50_ms = float(np.median(times_ms))
    return PieceReport(
        step=i,
        file=piece.file,
        agent=step.agent_only,
        decisions=step.option_decisions,
        options=piece.options,
        macs=macs,
        bytes_moved=bytes_moved,
        runs=len(times_ms),
        p50_ms=p50_ms,
        mean_ms=float(times_ms.mean()),
        gmacs_per_s=batch * macs / p50_ms / 1e6 if macs and p50_ms else None,
        intensity=batch * macs / bytes_moved if macs and bytes_moved else None,
    )


def _bytes_moved(step: Step, piece: Piece, plan: Plan, batch: int) -> int:
    """Of the weights, and of the inputs and outputs of a batch, each once."""
    options = dict(zip(step.option_decisions, piece.options, strict=True))
    every = [options.get(t, 1) for t in range(1 + max(options, default=0))]
    names = {*step.inputs.values(), *step.outputs.values()}
    return piece.weight_bytes + batch * sum(
        math.prod(tensor.shape_at(every)) * storage_dtype(tensor.dtype).itemsize
        for tensor in plan.tensors
        if tensor.name in names
    )


def _not_faster_than(report: PieceReport, reports: Sequence[PieceReport]) -> Path | None:
    """Of the pieces with one option one larger, those that are as fast or faster: the fastest."""
    wider = [
        other
        for other in reports
        if other.step == report.step
        and sorted(b - a for a, b in zip(report.options, other.options, strict=True))
        == [0] * (len(report.options) - 1) + [1]
        and other.p50_ms <= report.p50_ms
    ]
    return min(wider, key=lambda other: other.p50_ms).options if wider else None
