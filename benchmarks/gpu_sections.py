"""One measurement of gpu_results.py, in this process: what is done is written after each row.

    python gpu_sections.py SECTION FOLDER OUTPUT --backend NAME --device cuda [--engines DIR]

FOLDER is a network of gpu_networks.py. OUTPUT is JSON, a list of rows; a row that failed has ``error``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from time import perf_counter, perf_counter_ns
from typing import Any

import click
import numpy as np

from gpu_contenders import Images, Place, Subject
from rnp_deploy import Controller
from rnp_deploy.errors import RnpError

#: Theoretical speed-ups at which the paper reports VGG-16.
TARGETS = (3, 4, 5, 10)
PACKAGES = (
    "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "numpy", "cuda-bindings",
    "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
)  # fmt: skip
CLOCKS = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
WARM_UP = 3
LEAST_REPEATS = 5


@dataclass(frozen=True)
class Job:
    """What to measure; ``seconds`` for one set of contenders."""

    place: Place
    batches: tuple[int, ...]
    repeats: int
    seconds: float
    output: Path

    def write(self, rows: list[dict[str, Any]]) -> None:
        """All rows so far."""
        beside = self.output.with_suffix(".part")
        beside.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        os.replace(beside, self.output)

    def each(self, measures: Mapping[str, Callable[[], dict[str, Any]]]) -> None:
        """Measure row after row; one that fails is written down, and does not stop the others."""
        rows: list[dict[str, Any]] = []
        for name, measure in measures.items():
            started = perf_counter()
            try:
                row = measure()
            except (RnpError, RuntimeError, ValueError, OSError, subprocess.SubprocessError) as err:
                row = {"error": f"{type(err).__name__}: {err}"}
            rows.append({"row": name, **row, "took_s": round(perf_counter() - started, 2)})
            self.write(rows)


def random_images(subject: Subject, batch: int) -> Images:
    """``[N, C, H, W]``, standard normal."""
    shape = subject.bundle.manifest.inputs[0].shape
    return np.random.default_rng(0).standard_normal((batch, *shape), np.float32)


def measured(contenders: Mapping[str, Callable[[], object]], job: Job) -> dict[str, dict[str, float]]:
    """Milliseconds of each, interleaved in an order drawn anew, after a warm up; medians and 10th percentiles."""
    order, generator = list(contenders), np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    started = perf_counter()
    for repeat in range(-WARM_UP, job.repeats):
        if repeat == 0:
            started = perf_counter()
        if repeat >= LEAST_REPEATS and perf_counter() - started > job.seconds:
            break
        generator.shuffle(order)
        for name in order:
            start_ns = perf_counter_ns()
            contenders[name]()  # ends with outputs on the host: the device is done
            if repeat >= 0:
                times[name].append((perf_counter_ns() - start_ns) / 1e6)
    return {
        name: {"p50": float(np.median(t)), "p10": float(np.percentile(t, 10)), "runs": len(t)}
        for name, t in times.items()
    }


def deviation(got: Any, wanted: Any) -> float:
    """Largest absolute error ÷ largest absolute value; infinity for what is not finite."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return (
        float(np.abs(got - wanted).max() / np.abs(wanted).max()) if np.isfinite(got).all() else float("inf")
    )


def parity(job: Job) -> None:
    """Every case of the reference, options given; those of a penalty also with the agent deciding."""
    with np.load(job.place.folder / "reference.npz") as loaded:
        reference = dict(loaded)
    controller = _controller(job.place)
    images = reference["images"]

    def case(i: int) -> dict[str, Any]:
        name, options = str(reference["names"][i]), reference["options"][i]
        got = controller.run(images, options=options)
        row: dict[str, Any] = {"deviation": deviation(got.outputs, reference["outputs"][i])}
        if name.startswith("penalty"):
            decided = controller.run(images, penalty=float(name.split()[1]))
            row["decisions"] = int(options.size)
            row["decisions_equal"] = int((decided.options == options).sum())
            at_taken = controller.run(images, options=decided.options)
            row["deviation_deciding"] = deviation(decided.outputs, at_taken.outputs)
        return row

    job.each({str(name): partial(case, i) for i, name in enumerate(reference["names"])})
    controller.close()


def _controller(place: Place) -> Controller:
    path = place.folder / "bundle" if place.engines is None else place.engines
    return Controller.load(path, place.backend, place.device, place.threads, cache_dir="")


def uniform(job: Job) -> None:
    """Every option everywhere, agent deciding, beside the static graph of that width."""
    subject = job.place.open()
    manifest = subject.bundle.manifest

    def row(batch: int, j: int) -> dict[str, Any]:
        host = random_images(subject, batch)
        images, path = subject.keep(host), manifest.uniform_options(j)
        deciding = subject.deciding(images, manifest.groups + 0.5 - j)
        static = subject.static(images, path)
        outputs, options = deciding()
        given = np.tile(np.asarray(path), (batch, 1))
        contenders = {
            "static": static,
            "controller": deciding,
            "from host": partial(subject.controller.run, host, penalty=manifest.groups + 0.5 - j),
            "from host, options given": partial(subject.controller.run, host, options=given),
        }
        return {
            "batch": batch,
            "option": j,
            "macs_share": manifest.path_macs(path) / manifest.macs,
            "decisions_right": bool((options == given).all()),
            "deviation": deviation(outputs, static()),
            "times": measured(contenders, job),
        }

    order = range(manifest.groups, 0, -1)
    job.each({f"batch {n}, option {j}": partial(row, n, j) for n in job.batches for j in order})


def points(job: Job) -> None:
    """Where the theoretical speed-up is the paper's: beside the dense static graph and the path's own."""
    subject = job.place.open()
    manifest = subject.bundle.manifest
    worths = np.asarray(json.loads((job.place.folder / "worths.json").read_text(encoding="utf-8")))
    prices = np.unique(worths)
    middles = (prices[1:] + prices[:-1]) / 2
    paths = [1 + (worths > price).sum(axis=1) for price in middles]
    speed_ups = np.array([manifest.macs / manifest.path_macs(path.tolist()) for path in paths])

    @cache
    def images_and_dense(batch: int) -> tuple[Any, Callable[[], Any]]:
        images = subject.keep(random_images(subject, batch))
        return images, subject.static(images, manifest.uniform_options(manifest.groups))

    def row(batch: int, target: int) -> dict[str, Any]:
        nearest = int(np.argmin(np.abs(np.log(speed_ups / target))))
        path = paths[nearest].tolist()
        images, dense = images_and_dense(batch)
        deciding = subject.deciding(images, float(middles[nearest]))
        own = subject.static(images, path)
        outputs, options = deciding()
        return {
            "batch": batch,
            "target": target,
            "theoretical": float(speed_ups[nearest]),
            "path": path,
            "decisions_right": bool((options == path).all()),
            "deviation": deviation(outputs, own()),
            "times": measured({"dense": dense, "controller": deciding, "static": own}, job),
        }

    job.each({f"batch {n}, {t}x": partial(row, n, t) for n in job.batches for t in TARGETS})


def memory(job: Job) -> None:
    """Bytes taken, by what this process has open: first the dense static graph, then every branch as well."""
    subject = job.place.open()
    manifest, before = subject.bundle.manifest, subject.used_bytes()
    images = subject.keep(random_images(subject, max(job.batches)))

    def dense() -> dict[str, Any]:
        subject.static(images, manifest.uniform_options(manifest.groups))()
        return {"batch": len(images), "bytes": subject.used_bytes() - before}

    def loaded() -> dict[str, Any]:
        subject.controller.preload()
        report = subject.controller.memory()
        return {
            "bytes": subject.used_bytes() - before,
            "engines": report.engines,
            "weight_bytes": report.weight_bytes,
        }

    def run() -> dict[str, Any]:
        for j in range(1, manifest.groups + 1):
            subject.deciding(images, manifest.groups + 0.5 - j)()
        return {"batch": len(images), "bytes": subject.used_bytes() - before}

    job.each({"dense static graph": dense, "and every branch loaded": loaded, "and every option run": run})


def build(job: Job) -> None:
    """An engine set of TensorRT, for the sections that follow."""
    from rnp_deploy.bundle.reading import open_bundle
    from rnp_deploy.engines.trt_build import build_tensorrt_set
    from rnp_deploy.engines.trt_network import BuildOptions

    engines, batch = job.place.engines, max(job.batches)
    if engines is None:
        raise click.UsageError("build needs --engines")

    def built() -> dict[str, Any]:
        options = BuildOptions(max_batch=batch, opt_batch=batch, external_tactics=False)
        bundle = open_bundle(job.place.folder / "bundle")
        made = build_tensorrt_set(
            bundle, engines, overwrite=True, options=options, cache_dir=engines.with_name("plans")
        )
        return {"engines": len(made.files), "fingerprint": made.fingerprint, "environment": made.environment}

    job.each({"build": built})


def here(job: Job) -> None:
    """The machine and the versions; without the project too, what can be told."""
    from rnp_deploy.benchmarking.environment import machine_environment
    from rnp_deploy.engines.cuda_driver import cuda_device

    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    job.each(
        {
            "machine": partial(machine_environment, None),
            "packages": lambda: versions,
            "gpu": lambda: dataclasses.asdict(cuda_device()),
            "clocks": _clocks,
        }
    )


def _clocks() -> dict[str, Any]:
    query = ["nvidia-smi", f"--query-gpu={CLOCKS}", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    return dict(zip(CLOCKS.split(","), done.stdout.splitlines()[0].split(", "), strict=True))


SECTIONS: dict[str, Callable[[Job], None]] = {
    "here": here,
    "parity": parity,
    "uniform": uniform,
    "points": points,
    "memory": memory,
    "build": build,
}


@click.command()
@click.argument("section", type=click.Choice(list(SECTIONS)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--backend", default="auto")
@click.option("--device", default="cuda")
@click.option("--engines", type=click.Path(path_type=Path))
@click.option("--batches", default="64,1")
@click.option("--repeats", type=int, default=50)
@click.option("--seconds", type=float, default=3.0)
def main(
    section: str, folder: Path, output: Path, backend: str, device: str, engines: Path | None, batches: str,
    repeats: int, seconds: float,
) -> None:  # fmt: skip
    """Measure SECTION of the network in FOLDER."""
    counts = tuple(int(count) for count in batches.split(","))
    started = time.perf_counter()
    SECTIONS[section](Job(Place(backend, device, folder, engines), counts, repeats, seconds, output))
    sys.stdout.flush()
    click.echo(f"{section}: {time.perf_counter() - started:.1f} s", err=True)
    os._exit(0)  # rows are written; what runtimes do at exit is not measured


if __name__ == "__main__":
    main()
