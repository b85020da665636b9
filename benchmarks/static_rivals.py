"""The controller beside the static graphs and the single file that a user would deploy instead.

    python benchmarks/static_rivals.py [SECTION...] --work DIR [--repeats 30] [--threads 1 --threads 2]

Sections, all of them where none is named; 224x224, fp32, ONNX Runtime on the CPU:

    uniform           option 4, 3, 2, 1 everywhere, batch 1: VGG-16, ResNet-50, ResNet-50 decided by block
    operating-points  VGG-16 where the theoretical speed-up is about 3, 4, 5, 10: how much of it is real
    batch             32 images of mixed options, under each policy, beside static graphs of the same widths
    memory            VGG-16: resident memory of a process of its own
    load              VGG-16: from before the import to the first answer, in a process of its own

Wherever the agent decides, it does its full work, and its decisions are checked; scripted_networks.py makes
the networks, once, under DIR. Each table is measured in one process, since a thread pool cannot be resized.
A repeat runs every contender once, in an order drawn anew; times are medians, and a ratio is followed, in
brackets, by that of the 10th percentiles: where the two differ, the machine was not quiet.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from rnp_deploy import Controller
from rnp_deploy.benchmarking.environment import machine_environment
from rnp_deploy.bundle.reading import open_bundle
from rnp_deploy.engines import ort
from rnp_deploy.engines.static_graph import static_graph
from rnp_deploy.memory import resident_bytes
from rnp_deploy.preloading import files_by_use

HERE = Path(__file__).resolve().parent
BATCH = 32
POLICIES = ("regroup", "serial", "round-up")
#: Theoretical speed-up → actual ÷ theoretical, as the paper reports for VGG-16 on a GPU.
PAPER_SHARES = {3: 0.77, 4: 0.75, 5: 0.74, 10: 0.59}
#: How many of the most used branches the third row of ``memory`` loads.
MOST_USED = 40

Images = NDArray[np.float32]
Times = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Job:
    """One table, or row of one, to measure in this process."""

    section: str
    network: str
    variant: str
    threads: int
    repeats: int
    work: Path

    @property
    def folder(self) -> Path:
        """Where scripted_networks.py left the network."""
        return self.work / self.network

    def controller(self, kind: str = "engines", **settings: Any) -> Controller:
        """Of the engine set, or of the bundle as it is."""
        return Controller.load(self.folder / kind, threads=self.threads, cache_dir="", **settings)

    def static(self, options: int | Sequence[int]) -> ort.OrtEngine:
        """The static graph of an option everywhere, or of any path."""
        if isinstance(options, int):
            graph = (self.folder / f"static-{options}.onnx").read_bytes()
        else:
            graph = static_graph(open_bundle(self.folder / "bundle"), options)
        return ort.engine_from_onnx(graph, self.folder / "bundle", f"static graph {options}", self.threads)

    def single_file(self, name: str) -> Any:
        """A session of the whole bundle in one file."""
        import onnxruntime

        options = ort.session_options(self.folder, self.threads)
        model = str(self.folder / name)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def decisions_at(self, penalty: float) -> NDArray[np.int64]:
        """``[T]``: what the agent was made to decide at this price."""
        worths = np.asarray(json.loads((self.folder / "worths.json").read_text(encoding="utf-8")))
        return 1 + (worths > penalty).sum(axis=1)


def random_images(count: int) -> Images:
    """``[N, 3, 224, 224]``, standard normal."""
    return np.random.default_rng(0).standard_normal((count, 3, 224, 224), np.float32)


def measured(contenders: Mapping[str, Callable[[], object]], repeats: int) -> Times:
    """Milliseconds of each contender, interleaved, after three runs that do not count."""
    order, generator = list(contenders), np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(-min(3, repeats), repeats):
        generator.shuffle(order)
        for name in order:
            start_ns = perf_counter_ns()
            contenders[name]()
            if repeat >= 0:
                times[name].append((perf_counter_ns() - start_ns) / 1e6)
    return {name: np.asarray(values) for name, values in times.items()}


def ratio(times: Times, name: str, rival: str) -> str:
    """Of the medians, and in brackets of the 10th percentiles."""
    tenth = np.percentile(times[name], 10) / np.percentile(times[rival], 10)
    return f"{np.median(times[name]) / np.median(times[rival]):.3f} ({tenth:.3f})"


def check_equal(what: str, got: Any, wanted: Any, tolerance: float = 0.0) -> None:
    """Stop where something else was computed than is claimed; ``tolerance`` is of the largest value."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    if not np.isfinite(got).all() or np.abs(got - wanted).max() > tolerance * np.abs(wanted).max():
        raise click.ClickException(f"{what}: {got.ravel()[:20]} instead of {wanted.ravel()[:20]}")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """As markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    click.echo("\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines))


def heading(job: Job) -> str:
    """What was measured, on what."""
    ort.require_runtime()
    here = machine_environment(job.threads)
    return (
        f"\n**{job.section}, {job.network}**: {here['processor']}, {here['cores']} cores, ONNX Runtime "
        f"{here['onnxruntime']}, Python {here['python']}, {job.threads} thread(s), {job.repeats} repeats, "
        f"{datetime.date.today()}\n"
    )


def uniform(job: Job) -> None:
    """Contenders of one option are interleaved, one option after another."""
    images, rows = random_images(1), []
    whole, fed = job.single_file("if.onnx"), job.single_file("if-fed.onnx")
    with job.controller() as controller, job.controller("bundle") as plain:
        manifest = controller.manifest
        for j in range(4, 0, -1):
            penalty, static = 4.5 - j, job.static(j)
            options = np.array([manifest.uniform_options(j)])
            check_equal("scripted decisions", job.decisions_at(penalty), options[0])
            price = np.array([penalty], np.float32)
            contenders = {
                "static graph": functools.partial(static.run, {"images": images}),
                "controller": functools.partial(controller.run, images, penalty=penalty),
                "controller, bundle": functools.partial(plain.run, images, penalty=penalty),
                "If": functools.partial(whole.run, None, {"images": images, "penalty": price}),
                "If, fed": functools.partial(fed.run, None, {"images": images, "options": options}),
            }
            expected = contenders["static graph"]()[manifest.outputs[0].name]
            for name in ("controller", "controller, bundle"):
                result = contenders[name]()
                check_equal(f"{name}'s decisions", result.options, options)
                check_equal(f"{name}'s outputs", result.outputs, expected, 1e-3)
            outputs = contenders["If"]()
            check_equal("the single file's outputs", outputs[0], expected, 1e-3)
            check_equal("the single file's decisions", outputs[1], options)
            check_equal("the fed file's outputs", contenders["If, fed"]()[0], expected, 1e-3)
            times = measured(contenders, job.repeats)
            rivals = [name for name in contenders if name != "static graph"]
            rows.append(
                [j, f"{manifest.path_macs(options[0]) / manifest.macs:.3f}"]
                + [f"{np.median(values):.2f}" for values in times.values()]
                + [ratio(times, name, "static graph") for name in rivals]
            )
    click.echo(heading(job))
    columns = ["option", "MACs ÷ dense", *(f"{name}, ms" for name in contenders)]
    print_table([*columns, *(f"{name} ÷ static" for name in rivals)], rows)


def operating_points(job: Job) -> None:
    """Prices lie between those at which a decision changes; the path's own static graph stands by."""
    images = random_images(1)
    dense = job.static(4)
    contenders = {"dense": functools.partial(dense.run, {"images": images})}
    theoretical: dict[int, float] = {}
    with job.controller() as controller:
        manifest = controller.manifest
        prices = np.unique(json.loads((job.folder / "worths.json").read_text(encoding="utf-8")))
        middles = (prices[1:] + prices[:-1]) / 2
        speed_ups = [manifest.macs / manifest.path_macs(job.decisions_at(price)) for price in middles]
        for target in PAPER_SHARES:
            nearest = int(np.argmin(np.abs(np.log(np.asarray(speed_ups) / target))))
            penalty, theoretical[target] = float(middles[nearest]), speed_ups[nearest]
            options = job.decisions_at(penalty)
            deciding = functools.partial(controller.run, images, penalty=penalty)
            alone = functools.partial(job.static(options.tolist()).run, {"images": images})
            result = deciding()
            check_equal("the controller's decisions", result.options[0], options)
            check_equal("the outputs", result.outputs, alone()[manifest.outputs[0].name], 1e-3)
            contenders |= {f"controller {target}": deciding, f"static {target}": alone}
        times = measured(contenders, job.repeats)
    rows = []
    for target, paper in PAPER_SHARES.items():
        actual, tenth = (
            np.percentile(times["dense"], q) / np.percentile(times[f"controller {target}"], q)
            for q in (50, 10)
        )
        static = np.median(times["dense"]) / np.median(times[f"static {target}"])
        speed_up = theoretical[target]
        rows.append(
            [f"{value:.2f}" for value in (speed_up, np.median(times[f"controller {target}"]), actual)]
            + [f"{actual / speed_up:.3f} ({tenth / speed_up:.3f})", paper, f"{static / speed_up:.3f}"]
            + [ratio(times, f"controller {target}", f"static {target}")]
        )
    click.echo(heading(job) + f"\nDense static graph: {np.median(times['dense']):.2f} ms\n")
    columns = ["theoretical", "controller, ms", "actual", "actual ÷ theoretical", "the paper's"]
    print_table(
        [*columns, "actual ÷ theoretical of the path's static graph", "controller ÷ that graph"], rows
    )


def batch(job: Job) -> None:
    """Static graphs run each width as one batch; where every sample goes its own way, one by one."""
    images, generator, rows = random_images(BATCH), np.random.default_rng(1), []
    with job.controller() as controller:
        counts = controller.manifest.option_counts
        uniform_options = np.array([controller.manifest.uniform_options(1 + i % 4) for i in range(BATCH)])
        cases = {
            "1 to 4, uniform over the network": uniform_options[generator.permutation(BATCH)],
            "random at every decision": generator.integers(1, np.array(counts) + 1, (BATCH, len(counts))),
        }
        for what, options in cases.items():
            parts = [
                (job.static(path.tolist()), np.ascontiguousarray(images[(options == path).all(axis=1)]))
                for path in np.unique(options, axis=0)
            ]
            contenders: dict[str, Callable[[], object]] = {
                policy: functools.partial(controller.run, images, options=options, policy=policy)
                for policy in POLICIES
            }
            contenders["static"] = functools.partial(_run_each, parts)
            times = measured(contenders, job.repeats)
            rows.append(
                [what, len(parts)]
                + [f"{np.median(times[name]):.1f}" for name in ("static", *POLICIES)]
                + [ratio(times, policy, "static") for policy in POLICIES]
            )
    click.echo(heading(job))
    columns = ["options of the 32 images", "static graphs", "static, ms", *(f"{p}, ms" for p in POLICIES)]
    print_table([*columns, *(f"{policy} ÷ static" for policy in POLICIES)], rows)


def _run_each(parts: Sequence[tuple[ort.OrtEngine, Images]]) -> None:
    for engine, images in parts:
        engine.run({"images": images})


def memory(job: Job) -> None:
    """One row: what is loaded, and the process's memory then and after a run."""
    images, kind = random_images(1), "bundle" if "bundle" in job.variant else "engines"
    report, run = None, None
    if job.variant == "runtime imported":
        ort.require_runtime()
    elif job.variant == "dense static graph":
        run = functools.partial(job.static(4).run, {"images": images})
    elif job.variant == "single file":
        run = functools.partial(job.single_file("if.onnx").run, None, {"images": images})
    else:
        settings: dict[str, Any] = {"preload": "none" if "every" in job.variant else "all"}
        if "most used" in job.variant:
            settings["memory_budget_bytes"] = _bytes_of_most_used(job)
        controller = job.controller(kind, **settings)
        report = controller.memory
        run = functools.partial(_run_paths, controller, images, every="every" in job.variant)
    loaded_bytes = resident_bytes()
    if run is not None:
        run()
    row = [job.variant, "", "", f"{(loaded_bytes or 0) / 1e6:.0f}", f"{(resident_bytes() or 0) / 1e6:.0f}"]
    if report is not None:
        found = report()
        row[1:3] = [f"{found.engines} of {found.engines_in_all}", f"{found.weight_bytes / 1e6:.0f}"]
        if "every" in job.variant:
            check_equal("branches run", found.engines, found.engines_in_all)
    click.echo("| " + " | ".join(row) + " |")


def _bytes_of_most_used(job: Job) -> int:
    """The budget that holds the weights of so many branches and no more."""
    with job.controller() as controller:
        weights = {piece.file: piece.weight_bytes for step in controller.plan.steps for piece in step.pieces}
        files = list(files_by_use(controller.plan, controller.manifest))
    return sum(weights[file] for file in files[:MOST_USED])


def _run_paths(controller: Controller, images: Images, *, every: bool) -> None:
    """The path of the options used most; or paths that alternate, which take every pair of options."""
    manifest = controller.manifest
    if every:
        pairs = itertools.product(range(1, 5), repeat=2)
        paths = [[pair[t % 2] for t in range(len(manifest.decisions))] for pair in pairs]
    else:
        counts = manifest.calibration.at(manifest.agent.penalty).option_counts if manifest.calibration else ()
        paths = [[1 + int(np.argmax(row)) for row in counts]]
    for path in paths:
        controller.run(images, options=[path])


def load(job: Job) -> None:
    """A process for each time."""
    kinds = {"engines": "engine set", "bundle": "bundle", "static": "dense static graph"}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _, kind in itertools.product(range(job.repeats), kinds):
        command = [sys.executable, str(HERE / "first_answer.py"), kind, str(job.folder), str(job.threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        times[kind].append(float(done.stdout))
    click.echo(heading(job))
    rows = [[kinds[kind], *(f"{np.percentile(v, q):.0f}" for q in (50, 10))] for kind, v in times.items()]
    print_table(["loaded", "first answer after, ms", "10th percentile, ms"], rows)


@dataclass(frozen=True)
class Section:
    """A measurement, what it is of, and what its repeats are divided by."""

    measure: Callable[[Job], None]
    networks: tuple[str, ...]
    variants: tuple[str, ...] = ("",)
    slowness: int = 1


MEMORY_VARIANTS = (
    "runtime imported",
    "dense static graph",
    "single file",
    "bundle, preload all",
    "engine set, preload all",
    "engine set, every branch run",
    f"engine set, {MOST_USED} most used",
)
SECTIONS = {
    "uniform": Section(uniform, ("vgg16", "resnet50", "resnet50-block")),
    "operating-points": Section(operating_points, ("vgg16-mixed",)),
    "batch": Section(batch, ("vgg16", "resnet50"), slowness=5),
    "memory": Section(memory, ("vgg16-mixed",), MEMORY_VARIANTS),
    "load": Section(load, ("vgg16",), slowness=3),
}


def prepare(network: str, work: Path) -> None:
    """In a process of its own: none that is measured imports torch."""
    command = [sys.executable, str(HERE / "scripted_networks.py"), network, "--work", str(work)]
    support = {**os.environ, "PYTHONPATH": str(HERE.parent / "tests" / "support")}
    subprocess.run(command, check=True, env=support, stdout=sys.stderr)


@click.command()
@click.argument("sections", nargs=-1, type=click.Choice(list(SECTIONS)))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Keeps the networks.")
@click.option("--repeats", type=click.IntRange(min=1), default=30, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), multiple=True, default=(1, 2), show_default=True)
@click.option("--network", "only", multiple=True, help="Only these networks.")
@click.option("--variant", default=None, hidden=True, help="Measure this in this process.")
def main(
    sections: tuple[str, ...],
    work: Path,
    repeats: int,
    threads: tuple[int, ...],
    only: tuple[str, ...],
    variant: str | None,
) -> None:
    """Print the tables of SECTIONS."""
    if variant is not None:
        SECTIONS[sections[0]].measure(Job(sections[0], only[0], variant, threads[0], repeats, work))
        return
    for name in sections or SECTIONS:
        section, times = SECTIONS[name], max(1, repeats // SECTIONS[name].slowness)
        for network in [n for n in section.networks if n in (only or section.networks)]:
            prepare(network, work)
            for count in threads:
                if name == "memory":
                    click.echo(heading(Job(name, network, "", count, 1, work)))
                    print_table(["process", "branches", "weights, MB", "loaded, MB", "after runs, MB"], [])
                for variant in section.variants:
                    command = [sys.executable, __file__, name, "--work", str(work), "--network", network]
                    counts = ["--threads", str(count), "--repeats", str(times)]
                    subprocess.run([*command, *counts, "--variant", variant], check=True)


if __name__ == "__main__":
    main()
