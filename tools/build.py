"""``rnp-build``: bundle → engine set for this machine, or for a GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rnp_deploy.progress import Progress
from rnp_deploy.tools.command import RnpCommand, print_json, progress_on_stderr

__all__ = ["main"]

_MIB = 2**20


@click.command("rnp-build", cls=RnpCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Engine set to write.")
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="What runs the engines.",
)
@click.option(
    "--verify",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="Random images on which the set is compared with the bundle, where it runs here; 0: do not compare.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier engine set.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
@click.option(
    "--flavor",
    type=click.Choice(["auto", "tensorrt", "rtx"]),
    help="tensorrt: which one; auto, the default: TensorRT where it is installed, else TensorRT-RTX.",
)
@click.option("--max-batch", type=click.IntRange(min=1), help="tensorrt: the largest batch. [default: 8]")
@click.option(
    "--opt-batch", type=click.IntRange(min=1), help="tensorrt: the batch to be fast at. [default: 1]"
)
@click.option(
    "--workspace", type=click.IntRange(min=1), help="tensorrt: scratch memory, MiB. [default: 1024]"
)
@click.option(
    "--no-external-tactics", is_flag=True, default=None, help="tensorrt: no cuBLAS and cuDNN kernels."
)
@click.option("--compute-capability", help="tensorrt, rtx: what to build for, such as 8.6,8.9,12.0.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="tensorrt: engines built at once. [default: a process per core for rtx; 1, which times best, else]",
)
@click.option(
    "--memory", type=click.IntRange(min=1), help="tensorrt: for builds at once, MiB. [default: half the free]"
)
@click.option(
    "--cache-dir",
    help="tensorrt: where plans are kept, '' for nowhere. [default: $RNP_CACHE_DIR, or this user's cache]",
)
@click.option(
    "--dry-run", is_flag=True, default=None, help="tensorrt: say what would be built, and write nothing."
)
def main(
    bundle: Path, output: Path, backend: str, verify: int, overwrite: bool, as_json: bool, **tensorrt: Any
) -> None:
    """Compile BUNDLE for this machine: its processor or GPU, and the runtime that is installed.

    Other machines and other versions refuse the engine set; the bundle runs anywhere.
    TensorRT-RTX needs no GPU to build, and builds for several.
    """
    from rnp_deploy.bundle.engine_set import check_not_an_engine_set

    given = {name: value for name, value in tensorrt.items() if value is not None}
    if given and backend != "tensorrt":
        raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} is for --backend tensorrt")
    check_not_an_engine_set(bundle)
    with progress_on_stderr() as progress:
        if backend == "tensorrt":
            report, text = _tensorrt(bundle, output, overwrite, given | {"verify": verify}, progress)
        else:
            report, text = _onnxruntime(bundle, output, overwrite, verify, progress)
    if as_json:
        print_json(report)
    else:
        click.echo(text)


def _onnxruntime(
    bundle: Path, output: Path, overwrite: bool, verify: int, progress: Progress
) -> tuple[dict[str, Any], str]:
    from rnp_deploy.bundle.reading import open_bundle
    from rnp_deploy.engines.ort_build import build_engine_set

    started = time.perf_counter()
    engines = build_engine_set(open_bundle(bundle), output, overwrite, verify=verify, progress=progress)
    return _report(output, engines, started, "not compared with the bundle")


def _tensorrt(
    bundle: Path, output: Path, overwrite: bool, given: Mapping[str, Any], progress: Progress
) -> tuple[dict[str, Any], str]:
    from rnp_deploy.bundle.reading import open_bundle
    from rnp_deploy.engines.trt_build import build_outlook, build_tensorrt_set

    started = time.perf_counter()
    settings = _settings(given) | {"progress": progress}
    if "dry_run" in given:
        settings.pop("verify")
        outlook = build_outlook(open_bundle(bundle), **settings)
        return vars(outlook) | {"dry_run": True}, (
            f"{outlook.library}: {outlook.pieces} pieces, {outlook.engines} different engines, {outlook.cached} of them "
            f"in the cache {outlook.cache or '(a temporary one)'}; to build: {outlook.weight_bytes / 1e6:.1f} MB of "
            f"graphs with weights, {outlook.workers} at once, about {outlook.peak_bytes / 1e6:.0f} MB of memory; "
            f"nothing was written"
        )
    engines = build_tensorrt_set(open_bundle(bundle), output, overwrite, **settings)
    reason = ": no GPU here that it runs on" if settings["verify"] else ""
    return _report(output, engines, started, f"not compared with the bundle{reason}")


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    from rnp_deploy.engines.trt_network import BuildOptions

    options = {name: given[name] for name in ("max_batch", "opt_batch") if name in given}
    if "workspace" in given:
        options["workspace_bytes"] = given["workspace"] * _MIB
    if "compute_capability" in given:
        options["compute_capabilities"] = tuple(given["compute_capability"].replace(" ", "").split(","))
    options["external_tactics"] = "no_external_tactics" not in given
    settings = {name: given[name] for name in ("flavor", "workers", "cache_dir", "verify") if name in given}
    if "memory" in given:
        settings["memory_bytes"] = given["memory"] * _MIB
    return settings | {"options": BuildOptions(**options)}


def _report(output: Path, engines: Any, started: float, not_compared: str) -> tuple[dict[str, Any], str]:
    seconds = round(time.perf_counter() - started, 2)
    report = {
        "engines": str(output),
        "backend": engines.backend,
        "pieces": sum(len(step.pieces) for step in engines.plan.steps),
        "bytes": sum(file.bytes for file in engines.files),
        "seconds": seconds,
        "fingerprint": engines.fingerprint,
        "max_deviation": engines.max_deviation,
        "decisions": engines.decisions,
        "decisions_equal": engines.decisions_equal,
    }
    compared = (
        not_compared
        if engines.max_deviation is None
        else f"outputs within {engines.max_deviation:.1e} of the bundle's, "
        f"{engines.decisions_equal} of {engines.decisions} decisions equal"
    )
    return (
        report,
        f"{output}: {report['pieces']} engines, {report['bytes'] / 1e6:.1f} MB, {compared}, {seconds} s",
    )


if __name__ == "__main__":
    main()
