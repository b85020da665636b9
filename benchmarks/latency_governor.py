"""A load that rises and falls, in real time: the lowest price held, and the governor.

    python benchmarks/latency_governor.py [BUNDLE] [--target-ms MS] [--seconds 60] [--threads 1]

Requests of one image arrive by a Poisson process and wait for one worker; a latency runs from arrival
to answer. The rate goes from calm over a peak back to calm, in shares of what the worker can serve at
the lowest price. Both runs get the same arrivals and images. Without BUNDLE, a ResNet-18 of torchvision at 112x112
with random weights and an agent drawn at random: its decisions follow the price but mean nothing, so
that it shows times, not accuracy. First the latency curve is measured, which gives the rates and, without
--target-ms, the target: five times the lowest price's p50.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from random_agents import export_random
from rnp_deploy import Controller, LatencyGovernor
from rnp_deploy.latency import LatencyCurve
from rnp_deploy.latency_calibration import measure_latency_curve
from rnp_deploy.pruning_settings import PENALTY_RANGE

#: Name, share of the time, rate at its begin and end ÷ what the lowest price serves.
PHASES = (
    ("calm", 0.15, 0.3, 0.3),
    ("rising", 0.15, 0.3, 1.3),
    ("peak", 0.3, 1.3, 1.3),
    ("falling", 0.1, 1.3, 0.3),
    ("calm again", 0.3, 0.3, 0.3),
)


@dataclass(frozen=True)
class Request:
    """When it arrived and was answered, s from the begin; its price and its share of the MACs."""

    arrived_s: float
    answered_s: float
    penalty: float
    macs_share: float


def arrival_times(seconds: float, capacity_per_s: float) -> NDArray[np.float64]:
    """Poisson arrivals over all phases, s."""
    rng = np.random.default_rng(0)
    ends = np.cumsum([0.0] + [share for _, share, _, _ in PHASES]) * seconds
    highest = max(max(begin, end) for _, _, begin, end in PHASES) * capacity_per_s
    times = np.sort(rng.uniform(0, seconds, rng.poisson(highest * seconds)))
    at = [x for i in range(len(PHASES)) for x in (ends[i], np.nextafter(ends[i + 1], 0))]
    rates = np.interp(times, at, [rate * capacity_per_s for phase in PHASES for rate in phase[2:]])
    return times[rng.uniform(0, highest, len(times)) < rates]


def serve(
    controller: Controller,
    images: NDArray[np.float32],
    times: NDArray[np.float64],
    price: LatencyGovernor | float,
) -> list[Request]:
    """Send the arrivals in real time to one worker thread."""
    waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    served: list[Request] = []
    start = time.monotonic() + 0.1

    def work() -> None:
        while (i := waiting.get()) is not None:
            penalty = price if isinstance(price, float) else price.penalty
            result = controller.run(images[i % len(images)][None], penalty=penalty)
            answered_s = time.monotonic() - start
            if isinstance(price, LatencyGovernor):
                price.record(1e3 * (answered_s - times[i]))
            share = float(result.macs[0] / controller.manifest.macs)
            served.append(Request(float(times[i]), answered_s, penalty, share))

    worker = threading.Thread(target=work)
    worker.start()
    for i, arrives_s in enumerate(times):
        time.sleep(max(0.0, start + arrives_s - time.monotonic()))
        waiting.put(i)
    waiting.put(None)
    worker.join()
    return served


def table(name: str, served: list[Request], seconds: float) -> list[str]:
    """Lines of the report: one for each phase by arrival, and one for all."""
    ends = np.cumsum([0.0] + [share for _, share, _, _ in PHASES]) * seconds
    spans = [(PHASES[i][0], ends[i], ends[i + 1]) for i in range(len(PHASES))] + [("all", 0.0, seconds)]
    lines = []
    for phase, begin_s, end_s in spans:
        part = [r for r in served if begin_s <= r.arrived_s < end_s]
        if not part:
            continue
        p50, p95 = np.percentile([1e3 * (r.answered_s - r.arrived_s) for r in part], [50, 95])
        share = np.mean([r.macs_share for r in part])
        penalty = np.mean([r.penalty for r in part])
        lines.append(
            f"| {name} | {phase} | {len(part) / (end_s - begin_s):.1f} | {p50:.1f} | {p95:.1f} "
            f"| {100 * share:.1f} | {penalty:.4f} |"
        )
    return lines


def curve_lines(curve: LatencyCurve) -> list[str]:
    """The measured curve as a table."""
    lines = ["| penalty | MACs % | p50 ms | p95 ms |", "|---|---|---|---|"]
    lines += [
        f"| {p.penalty:.4g} | {100 * p.macs_share:.1f} | {p.p50_ms:.2f} | {p.p95_ms:.2f} |"
        for p in curve.points
    ]
    return lines


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--target-ms", type=click.FloatRange(min=0, min_open=True))
@click.option("--seconds", type=click.FloatRange(min=5), default=60.0, show_default=True)
@click.option("--calibrate-s", type=click.FloatRange(min=0), default=10.0, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(
    bundle: Path | None, target_ms: float | None, seconds: float, calibrate_s: float, threads: int
) -> None:
    """Print the curve and the two runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = bundle or export_random("resnet18", 112, Path(folder))
        with Controller.load(path, threads=threads) as controller:
            show(controller, target_ms, seconds, calibrate_s, threads)


def show(
    controller: Controller, target_ms: float | None, seconds: float, calibrate_s: float, threads: int
) -> None:
    """Measure the curve, run the load twice, print."""
    manifest = controller.manifest
    images = np.random.default_rng(0).standard_normal((32, *manifest.inputs[0].shape), np.float32)
    curve = measure_latency_curve(
        controller, images, duration_s=calibrate_s, threads=threads, data="random", min_runs=20
    )
    click.echo("\n".join(curve_lines(curve)))
    lowest = curve.points[0]
    target_ms = target_ms or 5 * lowest.p50_ms
    low, high = manifest.agent.penalty_range or PENALTY_RANGE
    times = arrival_times(seconds, 1e3 / lowest.p50_ms)
    click.echo(f"\n{len(times)} requests in {seconds:.0f} s, target {target_ms:.1f} ms\n")
    click.echo(
        "| price | phase | requests/s | p50 ms | p95 ms | MACs % | mean penalty |\n|---|---|---|---|---|---|---|"
    )
    click.echo("\n".join(table("lowest", serve(controller, images, times, float(low)), seconds)))
    governor = LatencyGovernor(target_latency_ms=target_ms, penalty_range=(low, high), curve=curve)
    click.echo("\n".join(table("governed", serve(controller, images, times, governor), seconds)))
    click.echo(f"\nraised {governor.snapshot().raises} times; at the end: {governor.snapshot()}")


if __name__ == "__main__":
    main()
