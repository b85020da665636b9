"""The controller in C++ and in Python, each beside the static graph that it stands for.

    PYTHONPATH=tests/support python benchmarks/cpp_controller.py --work DIR [--rounds 3] [--duration-s 5]

Of VGG-16 as scripted_networks.py makes it, batch 1: at option 4, 3, 2, 1 everywhere, decided by the agent. Processes of
both languages take turns; in each the controller and the static graph take turns. Ratios are of medians within a process;
what is shown is the median over processes. "Beyond the pieces" is a run's time without that inside ONNX Runtime.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import click
import numpy as np

from rnp_deploy import Controller
from rnp_deploy.engine import Arrays, Engine
from rnp_deploy.engines import ort
from rnp_deploy.engines.backends import open_backend
from serving_build import built
from static_rivals import prepare

NETWORK = "vgg16"
WARM_UP = 4


class TimedEngine:
    """An engine whose bound calls add to a sum, ns."""

    def __init__(self, engine: Engine, spent: list[int]) -> None:
        self._engine, self._spent = engine, spent
        self.run, self.close = engine.run, engine.close

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """As of any engine."""
        call, spent = self._engine.bind(inputs, outputs), self._spent

        def timed() -> None:
            start = perf_counter_ns()
            call()
            spent[0] += perf_counter_ns() - start

        return timed


def measure_python(folder: Path, option: int, threads: int, duration_s: float) -> dict[str, Any]:
    """What rnp_bench_cpp --json reports, of Python."""
    bundle, spent = folder / "bundle", [0]
    opened = open_backend(folder / "engines", "onnxruntime", "cpu", threads, "")
    open_engine = opened.open_engine
    timed = dataclasses.replace(opened, open_engine=lambda path: TimedEngine(open_engine(path), spent))
    graph = (folder / f"static-{option}.onnx").read_bytes()
    images = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    times: dict[str, list[float]] = {"controller": [], "static": [], "overhead": []}
    with Controller.over(timed, threads=threads) as controller:
        static = ort.engine_from_onnx(graph, bundle, "static", threads)
        turn, end = 0, 0
        while turn < WARM_UP + 5 or perf_counter_ns() < end:
            before, start = spent[0], perf_counter_ns()
            result = controller.run(images, penalty=penalty_of(option))
            middle = perf_counter_ns()
            static.run({"images": images})
            done = perf_counter_ns()
            if turn == WARM_UP:
                end = done + int(2e9 * duration_s)
            if turn >= WARM_UP:
                times["controller"].append((middle - start) / 1e6)
                times["static"].append((done - middle) / 1e6)
                times["overhead"].append((middle - start - (spent[0] - before)) / 1e3)
            turn += 1
    p50 = {name: {"p50": float(np.median(values))} for name, values in times.items()}
    return {
        "options": result.options[0].tolist(),
        "times_ms": {"controller": p50["controller"], "static": p50["static"]},
        "overhead_us": p50["overhead"],
    }


def penalty_of(option: int) -> float:
    """Between what this group and the next are worth."""
    return 4.5 - option


def measure(
    language: str, folder: Path, option: int, threads: int, duration_s: float
) -> tuple[float, float, float]:
    """Static graph, ms; controller ÷ static; beyond the pieces, µs: medians of one process."""
    common = ["--threads", str(threads), "--duration-s", str(duration_s)]
    static = str(folder / f"static-{option}.onnx")
    if language == "python":
        command = [
            sys.executable,
            __file__,
            "--work",
            str(folder.parent),
            "--python-option",
            str(option),
            *common,
        ]
    else:
        command = [
            str(built("release") / "rnp_bench_cpp"),
            str(folder / "engines"),
            "--static",
            static,
            "--weights",
        ]
        command += [str(folder / "bundle"), "--penalty", str(penalty_of(option)), "--json", *common]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if set(report["options"]) != {option}:
        raise RuntimeError(f"{language} took options {report['options']} where {option} was scripted")
    controller, graph = (times["p50"] for times in report["times_ms"].values())
    return graph, controller / graph, report["overhead_us"]["p50"]


@click.command()
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Keeps the network.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--duration-s", default=5.0, show_default=True, help="Of each contender in a process.")
@click.option("--python-option", type=int, hidden=True, help="Measure Python at this option in this process.")
def main(work: Path, rounds: int, threads: int, duration_s: float, python_option: int | None) -> None:
    """Print the table."""
    folder = work / NETWORK
    if python_option is not None:
        click.echo(json.dumps(measure_python(folder, python_option, threads, duration_s)))
        return
    prepare(NETWORK, work)
    click.echo(
        "| option | static, ms | C++ ÷ static | Python ÷ static | C++ beyond the pieces, µs | Python, µs |"
    )
    click.echo("|---|---|---|---|---|---|")
    for option in (4, 3, 2, 1):
        rows: dict[str, list[tuple[float, float, float]]] = {"cpp": [], "python": []}
        for _ in range(rounds):
            for language, found in rows.items():
                found.append(measure(language, folder, option, threads, duration_s))
        (ms, ratio, us), (_, python_ratio, python_us) = (np.median(found, axis=0) for found in rows.values())
        click.echo(f"| {option} | {ms:.2f} | {ratio:.3f} | {python_ratio:.3f} | {us:.0f} | {python_us:.0f} |")


if __name__ == "__main__":
    main()
