"""The curve measured on one machine: from the price of computing to milliseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from rnp_deploy.atomic import write_atomically
from rnp_deploy.bundle.fields import Finite, Frozen, Size
from rnp_deploy.bundle.signed_json import SignedFormat, read_signed, signed_text, validated
from rnp_deploy.errors import InputError
from rnp_deploy.falling_curve import isotonic_fall, penalty_at_most

__all__ = [
    "LATENCY_FORMAT",
    "LatencyCurve",
    "LatencyPoint",
    "curve_for",
    "read_latency_curve",
    "save_latency_curve",
]

LATENCY_FORMAT = SignedFormat("1.0", "latency_sha256", "measure the curve again")

_Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LatencyPoint(Frozen):
    """What a run of one batch took at one penalty.

    ``macs_share`` is mean backbone MACs ÷ the full network's; ``p50_ms`` and ``p95_ms`` are over
    all timed runs, the images' differing decisions included.
    """

    penalty: Finite
    macs_share: Finite
    p50_ms: _Milliseconds
    p95_ms: _Milliseconds

    @model_validator(mode="after")
    def _percentiles_rise(self) -> LatencyPoint:
        if self.p95_ms < self.p50_ms:
            raise ValueError(f"p95 of {self.p95_ms} ms is below p50 of {self.p50_ms} ms")
        return self


class LatencyCurve(Frozen):
    """Latency by penalty, as measured; it holds for this machine, batch and number of threads.

    Attributes:
        batch: Images per run; the latencies are those of a whole batch.
        threads: Threads that computed; None is one per core.
        data: What the images were, ``"random"`` where they mean nothing.
        images: How many different ones.
        runs: Timed runs of each point.
        environment: Versions, processor, cores.
        points: At rising penalties.
    """

    batch: Size
    threads: Size | None
    data: str
    images: Size
    runs: Size
    environment: dict[str, str | int | None]
    points: Annotated[tuple[LatencyPoint, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _penalties_rise(self) -> LatencyCurve:
        penalties = [point.penalty for point in self.points]
        if penalties != sorted(set(penalties)):
            raise ValueError(f"latency curve: penalties {penalties} do not rise")
        return self

    def penalty_for(self, target_latency_ms: float, *, quantile: float = 0.95) -> float:
        """The lowest penalty at which a batch takes at most ``target_latency_ms``.

        What was measured is noisy: the curve is first made to fall (least squares), then taken to
        be linear between points. The default quantile keeps 95 of 100 runs under the target while
        nothing else waits for the machine; under load, requests wait for one another besides, and
        :class:`rnp_deploy.LatencyGovernor` is for that.

        Args:
            target_latency_ms: Milliseconds for a batch, above 0.
            quantile: 0.95 or 0.5, the share of runs that are to meet it.

        Raises:
            InputError: No finite time above 0, another quantile, or faster than the fastest point.
        """
        if not (math.isfinite(target_latency_ms) and target_latency_ms > 0):
            raise InputError(f"target_latency_ms is {target_latency_ms}; pass milliseconds above 0")
        if quantile not in (0.5, 0.95):
            raise InputError(f"quantile is {quantile}; 0.5 and 0.95 were measured")
        measured = [point.p95_ms if quantile == 0.95 else point.p50_ms for point in self.points]
        curve = [(p.penalty, ms) for p, ms in zip(self.points, isotonic_fall(measured), strict=True)]
        penalty = penalty_at_most(curve, target_latency_ms)
        if penalty is None:
            fastest_ms = curve[-1][1]
            fastest = next(price for price, ms in curve if ms == fastest_ms)
            raise InputError(
                f"target_latency_ms is {target_latency_ms:.4g}: the fastest measured point takes "
                f"{fastest_ms:.4g} ms (p{100 * quantile:.0f}, batch {self.batch}), at penalty {fastest:.4g}"
            )
        return penalty


class _LatencyFile(Frozen):
    format_version: str
    curves: Annotated[tuple[LatencyCurve, ...], Field(min_length=1)]


def curve_for(curves: Sequence[LatencyCurve], batch: int) -> LatencyCurve:
    """The curve of a batch size; raises InputError."""
    found = [curve for curve in curves if curve.batch == batch]
    if not found:
        measured = sorted({curve.batch for curve in curves})
        raise InputError(
            f"target_latency_ms needs a latency curve for batches of {batch} with the threads that were asked for"
            + (f"; measured are {', '.join(map(str, measured))}" if measured else ", and none was measured")
            + f": rnp-bench ENGINES --calibrate --batch {batch} --threads T measures one on this machine"
        )
    return found[-1]


def save_latency_curve(curves: Sequence[LatencyCurve], path: str | Path) -> None:
    """Write curves, say of several batch sizes, with the hash of their values; replaces an earlier file.

    The file is written in one step: a killed process leaves the earlier one.

    Raises:
        InputError: No curve, or the directory is missing.
        OutputError: The file system refused.
    """
    if not curves:
        raise InputError("there is no latency curve to write; measure one first")
    file = _LatencyFile(format_version=LATENCY_FORMAT.version, curves=tuple(curves))
    write_atomically(Path(path), signed_text(file, LATENCY_FORMAT))


def read_latency_curve(path: str | Path) -> tuple[LatencyCurve, ...]:
    """Read and check what :func:`save_latency_curve` wrote.

    Raises:
        BundleError: It is missing, or no such file.
        FormatVersionError: Another major version wrote it.
        IntegrityError: A value differs from what was written.
    """
    path = Path(path)
    raw, _ = read_signed(path, LATENCY_FORMAT)
    return validated(_LatencyFile, raw, path, LATENCY_FORMAT).curves
