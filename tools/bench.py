"""``rnp-bench``: time a bundle beside its dense network and its static widths."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from rnp_deploy.bundle.reading import read_manifest
from rnp_deploy.errors import InputError
from rnp_deploy.latency import LatencyCurve
from rnp_deploy.latency_calibration import calibrate_engine_set
from rnp_deploy.profiling import Profile, profile_bundle
from rnp_deploy.tools.command import RnpCommand, print_json, print_table, progress_on_stderr

__all__ = ["main"]

_RANDOM_IMAGES = 64
_MOST_IMAGES, _MOST_BATCHES = 1024, 64  # read of a data set, whichever is more
_RANDOM_STAMP = "random inputs: the decisions mean nothing"


@click.command("rnp-bench", cls=RnpCommand)
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--data",
    help="The held-out split of digits, cifar10:DIR, cifar100:DIR or folder:DIR; "
    "FILE.npy (images) or FILE.npz (images, labels); "
    "default: what the bundle was calibrated on, or random inputs, stamped.",
)
@click.option(
    "--random", "use_random", is_flag=True, help=f"Random inputs instead; stamped: {_RANDOM_STAMP}."
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images per run.")
@click.option("--penalty", type=float, help="Price of one more channel group; default: the trained one.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that compute; default: one per core.")
@click.option(
    "--duration-s", type=click.FloatRange(min=0), default=3.0, show_default=True, help="Seconds at least."
)
@click.option("--min-runs", type=click.IntRange(min=1), default=100, show_default=True, help="Runs at least.")
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="For an engine set: the bundle it was built from, to time its static graphs too.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Time an engine set over the penalties instead, and write the latency curve of this batch into it.",
)
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def main(
    path: Path, data: str | None, use_random: bool, penalty: float | None, bundle: Path | None,
    calibrate: bool, as_json: bool, **timing: Any,
) -> None:  # fmt: skip
    """Time the bundle or engine set at PATH: static graphs, the agent's decisions, every option held fixed."""
    if data is not None and use_random:
        raise click.UsageError("pass either --data or --random")
    data = None if use_random else data or _calibration_data(path)
    images, labels = _random_images(path) if data is None else _load(data, path, timing["batch"])
    with progress_on_stderr() as progress:
        if calibrate:
            curve = calibrate_engine_set(path, images, data=data or "random", progress=progress, **timing)
            print_json(curve.model_dump(mode="json")) if as_json else print_table(_curve_table(curve))
            return
        profile = profile_bundle(
            path, images, labels, penalty=penalty, bundle=bundle, progress=progress, **timing
        )
    stamp = _RANDOM_STAMP if data is None else None
    if as_json:
        print_json({**dataclasses.asdict(profile), "data": data or "random", "stamp": stamp})
        return
    print_table(_table(profile, stamp))
    click.echo(_summary(profile))


def _calibration_data(path: Path) -> str | None:
    calibration = read_manifest(path).calibration
    name = None if calibration is None else calibration.data.partition(":")[0]
    return name if name == "digits" else None


def _random_images(path: Path) -> tuple[NDArray[np.float32], None]:
    shape = read_manifest(path).inputs[0].shape
    return np.random.default_rng(0).standard_normal((_RANDOM_IMAGES, *shape), np.float32), None


def _load(data: str, path: Path, batch: int) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    if not data.endswith((".npy", ".npz")):
        return _held_out(data, path, max(_MOST_IMAGES, _MOST_BATCHES * batch))
    try:
        content: Any = np.load(data, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content, None
        with content:
            return content["images"], content.get("labels")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise InputError(f"{data} cannot be read: {err}; save float32 images [N, C, H, W]") from err


def _held_out(data: str, path: Path, most: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images and labels of a data set's test split, evenly over its rows, as the bundle takes them."""
    from rnp_deploy.datasets import load_data, spread_rows

    manifest = read_manifest(path)
    wanted, (channels, *size) = manifest.preprocessing, manifest.inputs[0].shape
    form: Any = (tuple(size), "L" if channels == 1 else "RGB")
    if wanted is not None:
        form = (wanted.size, wanted.colour, wanted.mean, wanted.std)
    split = load_data(data, *form).test
    return split.read(spread_rows(split, most))


def _curve_table(curve: LatencyCurve) -> Table:
    table = Table(title=f"batch {curve.batch}, {curve.images} images of {curve.data}")
    for heading in ("penalty", "MACs %", "p50 ms", "p95 ms"):
        table.add_column(heading, justify="right")
    for point in curve.points:
        share = f"{100 * point.macs_share:.1f}"
        table.add_row(f"{point.penalty:.4g}", share, f"{point.p50_ms:.3f}", f"{point.p95_ms:.3f}")
    return table


def _table(profile: Profile, stamp: str | None) -> Table:
    table = Table(title=stamp)
    table.add_column(f"batch {profile.batch}")
    for heading in ("p50 ms", "p90 ms", "p99 ms", "runs", "MACs %", "speed-up", "÷ theory"):
        table.add_column(heading, justify="right")
    for timing in profile.timings:
        late = ("too few" if value is None else f"{value:.3f}" for value in (timing.p90_ms, timing.p99_ms))
        table.add_row(
            timing.name, f"{timing.p50_ms:.3f}", *late, str(timing.runs), f"{100 * timing.macs_share:.1f}",
            f"{timing.speedup:.2f}", f"{timing.efficiency:.2f}",
        )  # fmt: skip
    return table


def _summary(profile: Profile) -> str:
    counts = "; ".join(f"{t}: {' '.join(map(str, row))}" for t, row in enumerate(profile.option_counts))
    lines = [
        f"agent's share of the controller's time: {100 * profile.agent_share:.1f} %",
        f"images by option at each decision, cheapest first: {counts}",
    ]
    if profile.accuracy is not None and profile.dense_accuracy is not None:
        controller = next(timing for timing in profile.timings if timing.name == "controller")
        lines.append(
            f"accuracy: controller {100 * profile.accuracy:.2f} % at {100 * controller.macs_share:.1f} % of the MACs "
            f"(agent included), dense network {100 * profile.dense_accuracy:.2f} %; {profile.images} images"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
