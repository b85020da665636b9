"""What a benchmark measures, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rnp_deploy.benchmarking.load import check_scenario
from rnp_deploy.errors import InputError

__all__ = ["BenchSettings", "check_settings"]


@dataclass(frozen=True)
class BenchSettings:
    """What to measure, and how.

    Attributes:
        backend, device, threads: As :meth:`rnp_deploy.Controller.load`.
        batch: Images per run.
        penalty: Price of one more group; None is the agent's own.
        bundle: Of an engine set, the bundle it was built from, whose graphs the rivals are; None: there are
            none, and speed-ups are over the controller at its last option.
        baselines: Models of the user's own, ``.onnx`` or ``.plan``.
        duration_s: Seconds that each contender is timed for at least, on average.
        min_runs: Runs of each contender at least.
        warm_up_s: Seconds that all run before, at least, and until their times are stable.
        seed: Of orders, arrivals and bootstraps.
        scenario: ``"single-stream"``; ``"server"`` and ``"offline"`` add a load.
        qps: Requests per second of a server; None: the highest that keeps ``slo_ms`` is searched.
        slo_ms: What 99 of 100 requests are to be answered within.
        most_batch: Images a server runs together, and of an offline batch.
        batches: Batch sizes to sweep, with all policies.
        balance: Whether to sweep the penalty.
        pieces: Whether to time every branch.
        records: Whether the report keeps every run.
    """

    backend: str = "auto"
    device: str = "auto"
    threads: int | None = None
    batch: int = 1
    penalty: float | None = None
    bundle: Path | None = None
    baselines: Sequence[Path] = ()
    duration_s: float = 3.0
    min_runs: int = 100
    warm_up_s: float = 0.2
    seed: int = 0
    scenario: Literal["single-stream", "server", "offline"] = "single-stream"
    qps: float | None = None
    slo_ms: float | None = None
    most_batch: int = 8
    batches: Sequence[int] = ()
    balance: bool = False
    pieces: bool = True
    records: bool = False


def check_settings(settings: BenchSettings, images: int) -> None:
    """Refuse what does not fit, before anything is opened; raises InputError."""
    if settings.batch < 1 or images < settings.batch:
        raise InputError(f"{images} images do not fill a batch of {settings.batch}")
    if settings.batches and max(settings.batches) > images:
        raise InputError(f"{images} images do not fill a batch of {max(settings.batches)}")
    names = [Path(file).name for file in settings.baselines]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"two baselines are called {twice[0]}; rename one, since reports tell them by their names"
        )
    if settings.min_runs < 2:
        raise InputError(f"min_runs is {settings.min_runs}; a median with an interval needs 2 runs or more")
    check_scenario(settings.scenario, settings.qps, settings.slo_ms)
    if settings.scenario != "single-stream" and settings.duration_s <= 0:
        raise InputError(f"duration_s is {settings.duration_s}; a load needs seconds above 0")
