"""``rnp-bench``: time a bundle or engine set beside what a user would pick instead."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.table import Table

from rnp_deploy.atomic import check_parent, write_atomically
from rnp_deploy.benchmarking.benchmark import benchmark
from rnp_deploy.benchmarking.csv_report import csv_from_report
from rnp_deploy.benchmarking.html_report import html_from_report, require_page
from rnp_deploy.benchmarking.inputs import Inputs, load_inputs, random_inputs
from rnp_deploy.benchmarking.report import RANDOM_STAMP
from rnp_deploy.benchmarking.settings import BenchSettings
from rnp_deploy.bundle.reading import read_manifest
from rnp_deploy.engines.backends import BACKENDS, DEVICES
from rnp_deploy.errors import InputError
from rnp_deploy.latency import LatencyCurve
from rnp_deploy.latency_calibration import calibrate_engine_set
from rnp_deploy.tools import bench_compare
from rnp_deploy.tools.bench_tables import print_report
from rnp_deploy.tools.command import RnpCommand, print_json, print_table, progress_on_stderr

__all__ = ["main"]

_RANDOM_IMAGES = 64
_CALIBRATING = frozenset(
    [
        "path",
        "data",
        "use_random",
        "images",
        "accuracy",
        "batch",
        "threads",
        "duration_s",
        "min_runs",
        "seed",
        "as_json",
        "calibrate",
    ]
)


class _BenchCommand(RnpCommand):
    """``rnp-bench compare`` is a command of its own; a folder of that name is ``./compare``."""

    def main(  # type: ignore[override]  # one signature for click's overloads
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Run either command."""
        given = sys.argv[1:] if args is None else list(args)
        if given[:1] == ["compare"]:
            return bench_compare.main.main(given[1:], "rnp-bench compare", **extra)
        return super().main(given, prog_name, **extra)


def _batch_sizes(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in value.split(",")) if value else ()
    except ValueError as err:
        raise click.BadParameter("pass batch sizes parted by commas, e.g. 1,2,4,8") from err
    if any(size < 1 for size in sizes):
        raise click.BadParameter("a batch has 1 image or more")
    return sizes


@click.command(
    "rnp-bench",
    cls=_BenchCommand,
    epilog="rnp-bench compare A.json B.json compares two reports; see its --help.",
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--data",
    help="Folder of images; FILE.npy (images) or FILE.npz (images, labels); the held-out split of digits, "
    "cifar10:DIR, cifar100:DIR or folder:DIR.",
)
@click.option("--random", "use_random", is_flag=True, help="Noise instead of data; every table says so.")
@click.option(
    "--images", type=click.IntRange(min=1), default=512, show_default=True, help="Images read, at most."
)
@click.option("--accuracy", is_flag=True, help="Fail where the data has no labels.")
@click.option(
    "--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="What computes."
)
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="Where.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that compute; default: one per core.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images per run.")
@click.option("--penalty", type=float, help="Price of one more channel group; default: the agent's own.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="For an engine set: the bundle it was built from, to time its static graphs too.",
)
@click.option(
    "--baseline", "baselines", multiple=True, type=click.Path(path_type=Path),
    help="A model of yours to time beside: FILE.onnx, also of rnp-export --single-file, or FILE.plan. Repeatable.",
)  # fmt: skip
@click.option(
    "--scenario", type=click.Choice(["single-stream", "server", "offline"]), default="single-stream",
    show_default=True, help="MLPerf-style load to add: Poisson arrivals, or all at once.",
)  # fmt: skip
@click.option("--qps", type=click.FloatRange(min=0, min_open=True), help="Requests per second of the server.")
@click.option(
    "--slo-ms", type=click.FloatRange(min=0, min_open=True),
    help="Milliseconds that 99 of 100 requests are to take at most; without --qps the highest rate that keeps it is searched.",
)  # fmt: skip
@click.option(
    "--most-batch", type=click.IntRange(min=1), default=8, show_default=True,
    help="Images that the server runs together at most; images of an offline batch.",
)  # fmt: skip
@click.option(
    "--batches", callback=_batch_sizes, help="Batch sizes to sweep with every policy, e.g. 1,2,4,8."
)
@click.option("--balance", is_flag=True, help="Sweep the penalty: accuracy, MACs, latency, energy.")
@click.option(
    "--duration-s", type=click.FloatRange(min=0), default=3.0, show_default=True,
    help="Seconds that each contender is timed, on average and at least.",
)  # fmt: skip
@click.option(
    "--min-runs", type=click.IntRange(min=2), default=100, show_default=True, help="Runs of each, at least."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all that is drawn."
)
@click.option(
    "--pieces", "all_pieces", is_flag=True, help="Print every branch, not the worst that do not pay."
)
@click.option("--records", is_flag=True, help="Every run and request in the JSON report.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Report as JSON on stdout; its schema: docs/rnp-bench.schema.json.",
)
@click.option(
    "--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="A row per contender to FILE."
)
@click.option("--html", "html_file", type=click.Path(path_type=Path, dir_okay=False), help="A page to FILE.")
@click.option(
    "--calibrate",
    is_flag=True,
    help="Time an engine set over the penalties instead, and write the latency curve of this batch into it.",
)
def main(
    path: Path, data: str | None, use_random: bool, images: int, accuracy: bool, all_pieces: bool, as_json: bool,
    csv_file: Path | None, html_file: Path | None, calibrate: bool, **settings: Any,
) -> None:  # fmt: skip
    """Time the bundle or engine set at PATH: beside static graphs, by branch, path, part, load and price."""
    if settings["scenario"] == "server" and settings["qps"] is None and settings["slo_ms"] is None:
        raise click.UsageError(
            "--scenario server needs --qps, or --slo-ms to search the highest rate that keeps it"
        )
    if calibrate:
        _refuse_all_but(_CALIBRATING)
    if csv_file is not None and html_file is not None and csv_file.resolve() == html_file.resolve():
        raise click.UsageError(f"--csv and --html are both {csv_file}")
    for file in (csv_file, html_file):
        if file is not None:
            check_parent(file)  # now, not after minutes of measuring
    if html_file is not None:
        require_page()
    largest = max((settings["batch"], *settings["batches"]))
    inputs = _inputs(path, data, use_random, images, accuracy, largest, settings["seed"])
    with progress_on_stderr() as progress:
        if calibrate:
            curve = _calibrated(path, inputs, settings, progress)
            print_json(curve.model_dump(mode="json")) if as_json else print_table(_curve_table(curve, inputs))
            return
        report = benchmark(
            path,
            inputs,
            BenchSettings(**settings),
            command=shlex.join(["rnp-bench", *sys.argv[1:]]),
            progress=progress,
        )
    if csv_file is not None:
        write_atomically(csv_file, csv_from_report(report))
    if html_file is not None:
        write_atomically(html_file, html_from_report(report))
    print_json(report.model_dump(mode="json")) if as_json else print_report(report, all_pieces=all_pieces)


def _refuse_all_but(names: frozenset[str]) -> None:
    """Options that were given and would have no say; raises UsageError."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name not in names:
            raise click.UsageError(
                f"--calibrate writes a latency curve, and no report: leave {parameter.opts[0]} out"
            )


def _inputs(
    path: Path, data: str | None, use_random: bool, images: int, accuracy: bool, largest: int, seed: int
) -> Inputs:
    if (data is None) != use_random:
        raise click.UsageError(
            "pass --data, images like those to come, or --random: noise, whose decisions mean nothing"
            if data is None
            else "pass either --data or --random"
        )
    manifest = read_manifest(path)
    inputs = (
        random_inputs(manifest, min(images, max(_RANDOM_IMAGES, largest)), seed)
        if data is None
        else load_inputs(data, manifest, images)
    )
    if accuracy and inputs.labels is None:
        raise InputError(
            f"{inputs.name} has no labels, so there is no accuracy; pass FILE.npz with labels, a data set, or a "
            "folder whose folders are named like the network's classes"
        )
    return inputs


def _calibrated(path: Path, inputs: Inputs, settings: dict[str, Any], progress: Any) -> LatencyCurve:
    how = {name: settings[name] for name in ("batch", "threads", "duration_s", "min_runs")}
    return calibrate_engine_set(path, inputs.images, data=inputs.name, progress=progress, **how)


def _curve_table(curve: LatencyCurve, inputs: Inputs) -> Table:
    stamp = f"; {RANDOM_STAMP}" if inputs.random else ""
    table = Table(title=f"batch {curve.batch}, {curve.images} images of {curve.data}{stamp}")
    for heading in ("penalty", "MACs %", "p50 ms", "p95 ms"):
        table.add_column(heading, justify="right")
    for point in curve.points:
        share = f"{100 * point.macs_share:.1f}"
        table.add_row(f"{point.penalty:.4g}", share, f"{point.p50_ms:.3f}", f"{point.p95_ms:.3f}")
    return table


if __name__ == "__main__":
    main()
