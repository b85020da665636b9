"""C++ and Python on the same images: how many decisions differ, and how far outputs are apart.

    PYTHONPATH=tests/support python benchmarks/cpp_parity.py PACKAGE... [--images 64]

Of each package, by batches of 1 and 8 and by 1 and 2 threads: agent deciding at its own and at other prices, given
options, every policy. A network that takes images of 16x16 in one channel is run on all test images of digits; others
on random ones. The C++ program is the one that tests build, in build/serving/asan.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from cpp_runs import Run, cpp_results, differences, python_results
from rnp_deploy import Result
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.bundle.reading import read_manifest
from rnp_deploy.datasets import load_data
from serving_build import built, environment

POLICIES = ("regroup", "serial", "round-up")


def images_for(shape: tuple[int, ...], count: int) -> NDArray[np.float32]:
    """Test images of digits where they fit, else random ones."""
    if shape == (1, 16, 16):
        data = load_data("digits")
        return data.test.read(np.arange(len(data.test)))[0]
    return np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32)


def runs_over(manifest: Manifest, count: int, batch: int) -> list[Run]:
    """Every image at the agent's own price, in batches; some at other prices, with given options, by each policy."""
    counts = np.array(manifest.option_counts)
    runs = [Run(i, min(batch, count - i)) for i in range(0, count, batch)]
    random = np.random.default_rng(batch)
    for policy, _ in itertools.product(POLICIES, range(2)):
        options = random.integers(1, counts + 1, (batch, len(counts)))
        runs += [
            Run(0, batch, {"penalty": random.uniform(0, 0.3, batch), "policy": policy}),
            Run(0, batch, {"options": options, "policy": policy}),
        ]
    return runs


def paths(results: list[Result]) -> int:
    """How many different paths were taken."""
    return len(np.unique(np.concatenate([result.options for result in results]), axis=0))


@click.command()
@click.argument("packages", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--images", "count", type=click.IntRange(min=8), default=64, show_default=True)
def main(packages: tuple[Path, ...], count: int) -> None:
    """Print a row for each package, batch size and number of threads."""
    program = built("asan") / "rnp_run_arrays"
    click.echo("| package | batch | threads | images | paths | rows that differ | largest deviation |")
    click.echo("|---|---|---|---|---|---|---|")
    for package, batch, threads in itertools.product(packages, (1, 8), (1, 2)):
        manifest = read_manifest(package)
        images = images_for(manifest.inputs[0].shape, count)
        runs = runs_over(manifest, len(images), batch)
        expected = python_results(package, images, runs, threads)
        got = cpp_results(program, package, images, runs, threads, environment("asan"))
        deviation, rows = differences(got, expected)
        click.echo(
            f"| {package} | {batch} | {threads} | {sum(run.batch for run in runs)} | {paths(expected)} | {rows} | "
            f"{deviation:.1e} |"
        )


if __name__ == "__main__":
    main()
