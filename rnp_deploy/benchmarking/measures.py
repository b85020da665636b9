"""Latencies and energies as reports hold them; the unit is in the name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rnp_deploy.bundle.fields import Count, Frozen

__all__ = ["Energy", "Latency", "Milliseconds", "Percentile", "Share"]

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Percentile(Frozen):
    """A percentile with its 95 % interval, by order statistics."""

    ms: Milliseconds
    low_ms: Milliseconds
    high_ms: Milliseconds


class Latency(Frozen):
    """Latencies of one contender.

    Attributes:
        runs: How many were timed.
        mean_ms: Of all.
        typical_ms: The mean over batches of the median of each: of images that cost different amounts a mean, in which
            a pause of the machine does not count.
        cv: Coefficient of variation, 0.025 is 2.5 %, of latencies ÷ the median of their own batch of images, so
            that work which differs by image is no noise. None with fewer than two runs of a batch.
        p50, p90, p95, p99, p99_9: None where the runs are too few to hold one beyond it.
        quantiles_ms: At 0, 1, …, 100 %.
        block_p50_ms: Medians of consecutive parts of the measurement, in order of time.
        device_mean_ms: By the events of the device; None on a host.
    """

    runs: Count
    mean_ms: Milliseconds
    typical_ms: Milliseconds
    cv: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    p50: Percentile | None = None
    p90: Percentile | None = None
    p95: Percentile | None = None
    p99: Percentile | None = None
    p99_9: Percentile | None = None
    quantiles_ms: tuple[Milliseconds, ...] = ()
    block_p50_ms: tuple[Milliseconds, ...] = ()
    device_mean_ms: Milliseconds | None = None


class Energy(Frozen):
    """Energy of an image; ``source`` says which counter, ``reason`` why there is no number."""

    joules_per_image: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    mean_watts: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    source: str | None = None
    reason: str | None = None
