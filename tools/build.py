"""``rnp-build``: bundle → engine set for this machine."""

from __future__ import annotations

import time
from pathlib import Path

import click

from rnp_deploy.tools.command import RnpCommand, print_json, progress_on_stderr

__all__ = ["main"]


@click.command("rnp-build", cls=RnpCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Engine set to write.")
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime"]),
    default="onnxruntime",
    show_default=True,
    help="What runs the engines.",
)
@click.option(
    "--verify",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="Random images on which the engine set is compared with the bundle; 0: do not compare.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier engine set.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def main(bundle: Path, output: Path, backend: str, verify: int, overwrite: bool, as_json: bool) -> None:
    """Compile BUNDLE for this machine: its processor, and the runtime that is installed.

    Other machines and other versions refuse the engine set; the bundle runs anywhere.
    """
    from rnp_deploy.atomic import check_output
    from rnp_deploy.bundle.engine_set import ENGINES_FILE, check_not_an_engine_set
    from rnp_deploy.bundle.reading import open_bundle
    from rnp_deploy.engines.ort_build import build_engine_set

    check_not_an_engine_set(bundle)
    check_output(output, overwrite=overwrite, marker=ENGINES_FILE)
    started = time.perf_counter()
    with progress_on_stderr() as progress:
        engines = build_engine_set(open_bundle(bundle), output, overwrite, verify=verify, progress=progress)
    report = {
        "engines": str(output),
        "backend": backend,
        "pieces": sum(len(step.pieces) for step in engines.plan.steps),
        "bytes": sum(file.bytes for file in engines.files),
        "seconds": round(time.perf_counter() - started, 2),
        "fingerprint": engines.fingerprint,
        "max_deviation": engines.max_deviation,
        "decisions": engines.decisions,
        "decisions_equal": engines.decisions_equal,
    }
    if as_json:
        print_json(report)
        return
    compared = (
        "not compared with the bundle"
        if engines.max_deviation is None
        else f"outputs within {engines.max_deviation:.1e} of the bundle's, "
        f"{engines.decisions_equal} of {engines.decisions} decisions equal"
    )
    click.echo(
        f"{output}: {report['pieces']} engines, {int(str(report['bytes'])) / 1e6:.1f} MB, {compared}, {report['seconds']} s"
    )


if __name__ == "__main__":
    main()
