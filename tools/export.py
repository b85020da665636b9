"""``rnp-export``: checkpoint → bundle."""

from __future__ import annotations

import time
from pathlib import Path

import click

from rnp_deploy.tools.command import RnpCommand, print_json, progress_on_stderr

__all__ = ["main"]


@click.command("rnp-export", cls=RnpCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Bundle directory to write."
)
@click.option(
    "--verify",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Random inputs each branch is compared with the torch reference on; 0: do not compare.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier bundle.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def main(checkpoint: Path, output: Path, verify: int, overwrite: bool, as_json: bool) -> None:
    """Export CHECKPOINT (a folder from rnp-train) as a bundle: one ONNX graph per agent step and branch."""
    from rnp_deploy.atomic import check_output
    from rnp_deploy.exporters import export_bundle
    from rnp_deploy.network.checkpoint import load_checkpoint

    check_output(output, overwrite=overwrite, marker="manifest.json")
    started = time.perf_counter()
    loaded = load_checkpoint(checkpoint)
    with progress_on_stderr() as progress:
        manifest = export_bundle(
            loaded.network,
            output,
            overwrite,
            verify=verify,
            calibration=loaded.calibration,
            preprocessing=loaded.preprocessing,
            classes=loaded.classes,
            progress=progress,
        )
    report = {
        "bundle": str(output),
        "branches": manifest.branch_count(),
        "bytes": sum(file.bytes for file in manifest.files),
        "seconds": round(time.perf_counter() - started, 2),
        "verification": manifest.verification.model_dump(mode="json"),
    }
    if as_json:
        print_json(report)
        return
    deviation = manifest.verification.max_branch_deviation
    checked = "not verified" if deviation is None else f"largest deviation {deviation:.1e}"
    click.echo(
        f"{output}: {report['branches']} branches, {int(str(report['bytes'])) / 1e6:.1f} MB, {checked}, {report['seconds']} s"
    )


if __name__ == "__main__":
    main()
