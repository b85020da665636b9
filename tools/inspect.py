"""``rnp-inspect``: what a bundle holds, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from rnp_deploy.bundle.engine_set import (
    LATENCY_FILE,
    is_engine_set,
    open_engine_set,
    read_engines,
)
from rnp_deploy.bundle.files import sized
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.bundle.precision import PrecisionReport
from rnp_deploy.bundle.reading import check_sizes, open_bundle, read_manifest
from rnp_deploy.errors import EngineError, EngineSetMismatchError
from rnp_deploy.explanation import Explanation
from rnp_deploy.tools.command import RnpCommand, print_json, print_table

__all__ = ["main"]


@click.command("rnp-inspect", cls=RnpCommand)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Verify the sha256 of every file, not its size alone.")
@click.option("--convs", is_flag=True, help="Show what became of every convolution, and why.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def main(path: Path, check: bool, convs: bool, as_json: bool) -> None:
    """Show what the bundle or engine set at PATH holds, and whether the engine set fits this machine."""
    if is_engine_set(path):
        engines = describe_engines(path, check=check)
        if as_json:
            print_json(engines)
        else:
            if convs:
                click.echo(str(Explanation(read_manifest(path).convolutions)))
            click.echo(_engines_summary(engines))
        return
    manifest = open_bundle(path).manifest if check else read_manifest(path)
    check_sizes(path, manifest)
    report = describe(manifest)
    report["checked"] = check
    if as_json:
        print_json(report)
        return
    if convs:
        click.echo(str(Explanation(manifest.convolutions)))
    else:
        print_table(_table(report))
    click.echo(_summary(report))


def describe_engines(path: Path, *, check: bool) -> dict[str, Any]:
    """The report on an engine set; with ``check`` every hash is verified, without loading an engine.

    ``fits_here`` is None where the runtime that would tell is not installed; ``why`` says more.
    """
    engines = read_engines(path)
    if check:
        open_engine_set(path).check_engines()
    for file in engines.files:
        sized(path, file)
    fits: bool | None = True
    why = None
    try:
        from rnp_deploy.engines.fingerprint import check_fits

        check_fits(path, engines)
    except EngineError as err:
        fits, why = (False if isinstance(err, EngineSetMismatchError) else None), str(err)
    sizes = {file.path: file.bytes for file in engines.files}
    return {
        "format_version": engines.format_version,
        "producer": engines.producer,
        "backend": engines.backend,
        "fingerprint": engines.fingerprint,
        "environment": engines.environment,
        "build_options": engines.build_options,
        "fits_here": fits,
        "why": why,
        "engines": sum(len(step.pieces) for step in engines.plan.steps),
        "engine_files": [
            {"file": piece.file, "options": piece.options, "bytes": sizes[piece.file], "loads_here": fits}
            for step in engines.plan.steps
            for piece in step.pieces
        ],
        "files": len(engines.files),
        "bytes": sum(file.bytes for file in engines.files),
        "in_place": sum(len(step.in_place) for step in engines.plan.steps),
        "decisions": engines.decisions,
        "decisions_equal": engines.decisions_equal,
        "max_deviation": engines.max_deviation,
        "latency_curve": (path / LATENCY_FILE).exists(),
        "checked": check,
    }


def _engines_summary(report: dict[str, Any]) -> str:
    deviation = report["max_deviation"]
    compared = (
        "not compared with the bundle" if deviation is None else f"within {deviation:.1e} of the bundle"
    )
    fits = {
        True: "fits this machine: all of them will load here",
        False: f"DOES NOT FIT, none of them will load here: {report['why']}",
        None: f"cannot tell whether they will load here: {report['why']}",
    }
    hashes = "all hashes are right" if report["checked"] else "hashes not checked (--check does)"
    return (
        f"engine set, format {report['format_version']}, by {report['producer']}, backend {report['backend']}: "
        f"{report['engines']} engines, {report['files']} files, {report['bytes'] / 1e6:.2f} MB; {hashes}\n"
        + "; ".join(f"{name} {value}" for name, value in report["fingerprint"].items())
        + f"\n{fits[report['fits_here']]}\n{compared}; "
        f"latency curve: {'measured' if report['latency_curve'] else 'none (rnp-bench --calibrate)'}"
    )


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
                "mode": _mode(manifest, s),
                "branches": len(stage.branches),
                "macs_least": min(macs),
                "macs_most": max(macs),
                "weight_bytes": sum(branch.weight_bytes for branch in stage.branches),
                "graph_bytes": sum(sizes[branch.file] for branch in stage.branches),
            }
        )
    cheapest = manifest.path_macs((1,) * len(manifest.decisions))
    report = manifest.precision_report
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
        "agent_trained": manifest.agent_trained,
        "precision": manifest.precision,
        "precision_report": report and report.model_dump(mode="json"),
        "convolutions": [conv.model_dump(mode="json") for conv in manifest.convolutions],
        "modes": {
            "this bundle": _cost(manifest, everything=True),
            "outputs": _cost(manifest, everything=False),
        },
        "files": len(manifest.files),
        "bytes": sum(sizes.values()),
        "stages": stages,
        "verification": manifest.verification.model_dump(mode="json"),
        "calibration": None if manifest.calibration is None else manifest.calibration.model_dump(mode="json"),
    }


def _mode(manifest: Manifest, s: int) -> str:
    """How a stage meets the options before it."""
    stage = manifest.stages[s]
    padded = any(tensor.name.endswith("_full") for tensor in stage.inputs)
    return "pairs" if stage.input_decisions else "outputs" if padded else "-"


def _cost(manifest: Manifest, *, everything: bool) -> dict[str, Any]:
    """What the branches cost, or those that would be left if every stage took full-width inputs."""
    sizes = {file.path: file.bytes for file in manifest.files}
    kept = [
        branch
        for stage in manifest.stages
        for branch in stage.branches
        if everything
        or all(
            o == manifest.option_counts[t]
            for t, o in zip(stage.input_decisions, branch.input_options, strict=True)
        )
    ]
    macs = {}
    for j in range(1, manifest.groups + 1):
        options = manifest.uniform_options(j)
        taken = [manifest.branch(s, options) for s in range(len(manifest.stages))]
        if not everything:
            taken = [
                next(b for b in kept if b in stage.branches and b.output_option == branch.output_option)
                for stage, branch in zip(manifest.stages, taken, strict=True)
            ]
        macs[str(j)] = sum(branch.macs for branch in taken)
    return {
        "branches": len(kept),
        "graph_bytes": sum(sizes[branch.file] for branch in kept),
        "weight_bytes": sum(branch.weight_bytes for branch in kept),
        "macs_by_option": macs,
    }


def _table(report: dict[str, Any]) -> Table:
    table = Table(
        "stage",
        "opens with",
        "widths",
        "input options of",
        "mode",
        "branches",
        "MMACs",
        "graphs, kB",
        "weights if loaded, MB",
    )
    for stage in report["stages"]:
        least, most = stage["macs_least"] / 1e6, stage["macs_most"] / 1e6
        table.add_row(
            str(stage["stage"]),
            stage["conv"] or "the input",
            " ".join(map(str, stage["widths"] or [])) or "-",
            " ".join(report["stages"][t + 1]["conv"] for t in stage["input_decisions"]) or "-",
            stage["mode"],
            str(stage["branches"]),
            f"{most:.3f}" if least == most else f"{least:.3f}..{most:.3f}",
            f"{stage['graph_bytes'] / 1e3:.1f}",
            f"{stage['weight_bytes'] / 1e6:.2f}",
        )
    return table


def _mode_line(name: str, cost: dict[str, Any], full: int) -> str:
    shares = " ".join(f"{100 * macs / full:.1f}" for macs in cost["macs_by_option"].values())
    return (
        f"{name}: {cost['branches']} branches, {cost['graph_bytes'] / 1e3:.0f} kB of graphs, "
        f"{cost['weight_bytes'] / 1e6:.1f} MB of weights if all are loaded; "
        f"MACs of option 1, 2, … everywhere: {shares} %"
    )


def _summary(report: dict[str, Any]) -> str:
    full, verification = report["macs_full"], report["verification"]
    deviation = verification["max_branch_deviation"]
    checked = (
        "not verified at export"
        if deviation is None
        else f"verified at export: largest deviation {deviation:.1e} of the largest activation"
    )
    modes = report["modes"]
    costs = [_mode_line("this bundle", modes["this bundle"], full)]
    if modes["outputs"]["branches"] != modes["this bundle"]["branches"]:
        costs.append(_mode_line("with branches=outputs it would be", modes["outputs"], full))
    trained = "" if report["agent_trained"] else "; the agent is UNTRAINED and takes all groups everywhere"
    hashes = "all hashes are right" if report["checked"] else "hashes not checked (--check does)"
    lost = report["precision_report"]
    if lost is not None:
        costs += PrecisionReport.model_validate_json(json.dumps(lost)).lines()
    return (
        f"format {report['format_version']}, {report['precision']}, by {report['producer']}; {report['files']} files, "
        f"{report['bytes'] / 1e6:.2f} MB; {hashes}\n"
        f"full network {full / 1e6:.2f} MMACs, cheapest path {100 * report['macs_cheapest_path'] / full:.1f} %, "
        f"agent {100 * report['macs_agent'] / full:.2f} % more; {checked}{trained}\n" + "\n".join(costs)
    )


if __name__ == "__main__":
    main()
