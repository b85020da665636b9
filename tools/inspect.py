"""``rnp-inspect``: what a bundle holds, and whether it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.bundle.reading import check_sizes, open_bundle, read_manifest
from rnp_deploy.tools.command import RnpCommand, print_json, print_table

__all__ = ["main"]


@click.command("rnp-inspect", cls=RnpCommand)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Verify the sha256 of every file, not its size alone.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def main(path: Path, check: bool, as_json: bool) -> None:
    """Show the stages, widths, branches, MACs and files of the bundle at PATH."""
    manifest = open_bundle(path).manifest if check else read_manifest(path)
    check_sizes(path, manifest)
    report = describe(manifest)
    report["checked"] = check
    if as_json:
        print_json(report)
        return
    print_table(_table(report))
    click.echo(_summary(report))


def describe(manifest: Manifest) -> dict[str, Any]:
    """The report: sizes in bytes, MACs per sample."""
    sizes = {file.path: file.bytes for file in manifest.files}
    stages = []
    for s, stage in enumerate(manifest.stages):
        decision = None if stage.decision is None else manifest.decisions[stage.decision]
        macs = [branch.macs for branch in stage.branches]
        stages.append(
            {
                "stage": s,
                "conv": None if decision is None else decision.conv,
                "widths": None if decision is None else list(decision.widths),
                "input_decisions": list(stage.input_decisions),
                "branches": len(stage.branches),
                "macs_least": min(macs),
                "macs_most": max(macs),
                "graph_bytes": sum(sizes[branch.file] for branch in stage.branches),
            }
        )
    cheapest = manifest.path_macs((1,) * len(manifest.decisions))
    return {
        "format_version": manifest.format_version,
        "producer": manifest.producer,
        "input": {"name": manifest.inputs[0].name, "shape": ["N", *manifest.inputs[0].shape]},
        "output": {"name": manifest.outputs[0].name, "shape": ["N", *manifest.outputs[0].shape]},
        "groups": manifest.groups,
        "penalty": manifest.agent.penalty,
        "macs_full": manifest.macs,
        "macs_cheapest_path": cheapest,
        "macs_agent": sum(step.macs for step in manifest.agent.steps),
        "files": len(manifest.files),
        "bytes": sum(sizes.values()),
        "stages": stages,
        "verification": manifest.verification.model_dump(mode="json"),
        "calibration": None if manifest.calibration is None else manifest.calibration.model_dump(mode="json"),
    }


def _table(report: dict[str, Any]) -> Table:
    table = Table("stage", "opens with", "widths", "input options of", "branches", "MMACs", "graphs, kB")
    for stage in report["stages"]:
        least, most = stage["macs_least"] / 1e6, stage["macs_most"] / 1e6
        table.add_row(
            str(stage["stage"]),
            stage["conv"] or "the input",
            " ".join(map(str, stage["widths"] or [])) or "-",
            " ".join(report["stages"][t + 1]["conv"] for t in stage["input_decisions"]) or "-",
            str(stage["branches"]),
            f"{most:.3f}" if least == most else f"{least:.3f}..{most:.3f}",
            f"{stage['graph_bytes'] / 1e3:.1f}",
        )
    return table


def _summary(report: dict[str, Any]) -> str:
    full, verification = report["macs_full"], report["verification"]
    deviation = verification["max_branch_deviation"]
    checked = (
        "not verified at export"
        if deviation is None
        else f"verified at export: largest deviation {deviation:.1e} of the largest activation"
    )
    hashes = "all hashes are right" if report["checked"] else "hashes not checked (--check does)"
    return (
        f"format {report['format_version']}, by {report['producer']}; {report['files']} files, "
        f"{report['bytes'] / 1e6:.2f} MB; {hashes}\n"
        f"full network {full / 1e6:.2f} MMACs, cheapest path {100 * report['macs_cheapest_path'] / full:.1f} %, "
        f"agent {100 * report['macs_agent'] / full:.2f} % more; {checked}"
    )


if __name__ == "__main__":
    main()
