"""Single images of many threads through RequestBatcher, beside batches made offline.

    python benchmarks/concurrent_requests.py [--requests 1000] [--callers 32] [--rounds 5] [--threads 2]

Offline all threads compute one batch; the batcher has workers of one thread each, which share nothing.
ResNet-18 of torchvision at 112x112 with random weights and images, as an engine set; the agent's decoder is
drawn anew, so that decisions vary from image to image. In a round, the images go through the controller
in consecutive batches, then one by one through the batcher, each thread waiting for its result before it
sends its next image. Every result is compared with the offline one: options equal, outputs within 1e-4 of the
largest. Throughputs are medians over the rounds, after one that does not count.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns

import click
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from rnp_deploy import Controller, RequestBatcher, Result
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.ort_build import build_engine_set
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.model_sources import build_model

SIZE = 112

Images = NDArray[np.float32]


def engines_of_resnet18(folder: Path) -> Path:
    """Export and build the network; its agent chooses now this, now that, as a trained one does."""
    torch.manual_seed(0)
    source = build_model("torchvision:resnet18")
    network = RuntimePrunedNetwork.from_backbone(source.module, torch.zeros(1, 3, SIZE, SIZE))
    torch.manual_seed(2)
    network.agent.decoder.reset_parameters()
    with torch.no_grad():
        network.agent.decoder.weight *= 8  # so that what it sees outweighs its bias
    network.agent.trained = True
    export_bundle(network, folder / "bundle", verify=0)
    build_engine_set(open_bundle(folder / "bundle"), folder / "engines", verify=0)
    return folder / "engines"


def varied_images(count: int) -> Images:
    """Noise whose contrast and colour differ from image to image, and with them the decisions."""
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((count, 3, SIZE, SIZE), np.float32)
    contrast = generator.uniform(0.1, 3, (count, 1, 1, 1)).astype(np.float32)
    return noise * contrast + generator.standard_normal((count, 3, 1, 1), np.float32)


def offline(controller: Controller, images: Images, batch: int) -> list[Result]:
    """One result per batch, in order."""
    return [controller.run(images[start : start + batch]) for start in range(0, len(images), batch)]


def concurrently(batcher: RequestBatcher, images: Images, callers: int) -> list[Result | None]:
    """One result per image, in order; None where a request was lost or failed."""
    results: list[Result | None] = [None] * len(images)

    def call(caller: int) -> None:
        for index in range(caller, len(images), callers):
            results[index] = batcher.run(images[index])

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def lost_and_wrong(results: list[Result | None], expected: Result) -> tuple[int, int]:
    """How many requests had no answer, and how many another one than offline."""
    atol = 1e-4 * np.abs(expected.outputs).max()
    wrong = sum(
        (result.options[0] != expected.options[index]).any()
        or np.abs(result.outputs[0] - expected.outputs[index]).max() > atol
        for index, result in enumerate(results)
        if result is not None
    )
    return results.count(None), int(wrong)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call, in s."""
    start_ns = perf_counter_ns()
    call()
    return (perf_counter_ns() - start_ns) / 1e9


@click.command()
@click.option("--requests", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option(
    "--callers", type=click.IntRange(min=1), default=32, show_default=True, help="Threads that ask."
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Of offline runs.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Of the batcher.")
def main(requests: int, callers: int, rounds: int, batch: int, threads: int, workers: int) -> None:
    """Print the row."""
    images = varied_images(requests)
    offline_s, concurrent_s, lost, wrong = [], [], 0, 0
    with (
        tempfile.TemporaryDirectory() as folder,
        # First, since it needs no thread pool, and with a pool in the process it could not be had.
        Controller.load(engines_of_resnet18(Path(folder)), threads=1, preload="all") as single,
        Controller.load(Path(folder) / "engines", threads=threads, preload="all") as controller,
        RequestBatcher(single, max_batch=batch, workers=workers) as batcher,
    ):
        for counts in [False] + [True] * rounds:
            parts: list[Result] = []
            results: list[Result | None] = []
            alone_s = seconds(lambda: parts.extend(offline(controller, images, batch)))  # noqa: B023
            together_s = seconds(lambda: results.extend(concurrently(batcher, images, callers)))  # noqa: B023
            expected = Result(*(np.concatenate(arrays) for arrays in zip(*map(_arrays, parts), strict=True)))
            missing, different = lost_and_wrong(results, expected)
            lost, wrong = lost + missing, wrong + different
            if counts:
                offline_s.append(alone_s)
                concurrent_s.append(together_s)
    paths = len(np.unique(expected.options, axis=0))
    offline_per_s, concurrent_per_s = (requests / statistics.median(s) for s in (offline_s, concurrent_s))
    ratios = [alone / together for alone, together in zip(offline_s, concurrent_s, strict=True)]
    click.echo(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ONNX Runtime "
        f"{onnxruntime.__version__}, {threads} thread(s) offline, {workers} worker(s) of one thread, {rounds} rounds, "
        f"{paths} different paths\n\n"
        "| requests | callers | batch | lost | wrong | offline, images/s | batcher, images/s | batcher ÷ offline "
        "| worst and best round |\n|---|---|---|---|---|---|---|---|---|\n"
        f"| {(rounds + 1) * requests} | {callers} | {batch} | {lost} | {wrong} | {offline_per_s:.1f} "
        f"| {concurrent_per_s:.1f} | {concurrent_per_s / offline_per_s:.3f} "
        f"| {min(ratios):.3f} to {max(ratios):.3f} |"
    )
    if lost or wrong:
        raise SystemExit(1)


def _arrays(result: Result) -> tuple[NDArray[np.generic], ...]:
    return result.outputs, result.options, result.macs


if __name__ == "__main__":
    main()
