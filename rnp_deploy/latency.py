"""The curve measured on one machine: from the price of computing to milliseconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from rnp_deploy.atomic import write_atomically
from rnp_deploy.bundle.fields import Finite, Frozen, Size
from rnp_deploy.canonical_json import canonical_sha256, dump_json, parse_json, read_json_bytes
from rnp_deploy.errors import BundleError, FormatVersionError, InputError, IntegrityError
from rnp_deploy.falling_curve import isotonic_fall, penalty_at_most

__all__ = ["LATENCY_FORMAT", "LatencyCurve", "LatencyPoint", "read_latency_curve", "save_latency_curve"]

LATENCY_FORMAT = "1.0"
_HASH = "latency_sha256"

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


def save_latency_curve(curves: Sequence[LatencyCurve], path: str | Path) -> None:
    """Write curves, say of several batch sizes, with the hash of their values; replaces an earlier file.

    The file is written in one step: a killed process leaves the earlier one.

    Raises:
        InputError: No curve, or the directory is missing.
        OutputError: The file system refused.
    """
    if not curves:
        raise InputError("there is no latency curve to write; measure one first")
    file = _LatencyFile(format_version=LATENCY_FORMAT, curves=tuple(curves))
    raw = file.model_dump(mode="json")
    raw[_HASH] = canonical_sha256(raw, without=_HASH)
    write_atomically(Path(path), dump_json(raw))


def read_latency_curve(path: str | Path) -> tuple[LatencyCurve, ...]:
    """Read and check what :func:`save_latency_curve` wrote.

    Raises:
        BundleError: It is missing, or no such file.
        FormatVersionError: Another version wrote it.
        IntegrityError: A value differs from what was written.
    """
    path = Path(path)
    try:
        raw = parse_json(read_json_bytes(path))
    except (OSError, ValueError) as err:
        raise BundleError(f"{path} cannot be read: {err}; measure the curve again") from err
    version: Any = raw.get("format_version")
    if version != LATENCY_FORMAT:
        raise FormatVersionError(f"{path}: format_version is {version!r}; expected {LATENCY_FORMAT!r}")
    if raw.pop(_HASH, None) != canonical_sha256(raw, without=_HASH):
        raise IntegrityError(
            f"{path}: its values are not those it was written with; copy it or measure the curve again"
        )
    try:
        return _LatencyFile.model_validate_json(dump_json(raw)).curves
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "latency curve"
        raise BundleError(f"{path}: {where}: {first['msg']}; measure the curve again") from err
