"""``rnp-export``: checkpoint → bundle, or one ONNX file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnp_deploy.errors import InputError
from rnp_deploy.tools.command import RnpCommand, print_json, progress_on_stderr
from rnp_deploy.tools.model_options import (
    IMAGE_NAMES,
    PRUNING_NAMES,
    model_options,
    parse_arguments,
    preprocessing_from,
    pruning_options,
    report_weights,
    settings_from,
    torch_example,
)

if TYPE_CHECKING:
    from rnp_deploy.datasets import ImageData
    from rnp_deploy.network.checkpoint import Checkpoint

__all__ = ["main"]


@click.command("rnp-export", cls=RnpCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Bundle directory to write, or file.")
@model_options
@pruning_options
@click.option(
    "--branches",
    type=click.Choice(["pairs", "outputs"]),
    default="pairs",
    show_default=True,
    help="A branch for every pair of input and output options, or for every output option: fewer, but slower.",
)
@click.option(
    "--branches-for", multiple=True, help="PATTERN=MODE for the stages whose convolution matches; repeat."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the backbone; the agent stays in fp32. fp16 and bf16 halve weights and tensors; int8 needs --data.",
)
@click.option(
    "--opset",
    type=int,
    help="Of ONNX, 17 to 20; 17 for the parser of TensorRT 8.5.  [default: 20; bf16 takes 22 alone]",
)
@click.option(
    "--data",
    "data_name",
    help="digits, cifar10:DIR, cifar100:DIR or folder:DIR, as for rnp-train: int8 finds its ranges on the train "
    "split, and what a precision changes is reported on the held-out one, else on random images.",
)
@click.option(
    "--verify",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="Random inputs each branch is compared with the reference on; 0: do not compare, nor report.",
)
@click.option(
    "--single-file",
    is_flag=True,
    help="Write one ONNX model, agent and branches inside, that any ONNX Runtime runs, one image at a time.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier bundle or file.")
@click.option("--explain", is_flag=True, help="Show what becomes of every convolution, and export nothing.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def main(  # noqa: PLR0913 - the options of the command
    checkpoint: Path | None,
    output: Path | None,
    branches: str,
    branches_for: tuple[str, ...],
    precision: str,
    opset: int | None,
    data_name: str | None,
    verify: int,
    single_file: bool,
    overwrite: bool,
    explain: bool,
    as_json: bool,
    **backbone: Any,
) -> None:
    """Export CHECKPOINT (a folder from rnp-train), or an untrained --model, as a bundle.

    A bundle holds one ONNX graph per agent step and branch. With --model and no CHECKPOINT the
    backbone is pruned as the options say, and its agent takes all groups everywhere until it is
    trained. With both, the model is the architecture of the checkpoint.
    """
    from rnp_deploy.exporters import export_bundle, export_single_file

    if explain:
        explanation = _load(checkpoint, **backbone).network.explain()
        if as_json:
            print_json([role.model_dump(mode="json") for role in explanation])
        else:
            click.echo(str(explanation))
        return
    if output is None:
        raise click.UsageError("pass -o BUNDLE, the directory to write, or --explain")
    if single_file and (precision != "fp32" or opset is not None or data_name is not None):
        raise click.UsageError("--single-file takes no --precision, --opset or --data; export a bundle")
    _check_output(output, overwrite, single_file)
    started = time.perf_counter()
    loaded = _load(checkpoint, **backbone)
    options: dict[str, Any] = {
        "branches": _modes(branches_for, branches),
        "verify": verify,
        "calibration": loaded.calibration,
        "preprocessing": loaded.preprocessing,
        "classes": loaded.classes,
    }
    with progress_on_stderr() as progress:
        if single_file:
            written = export_single_file(loaded.network, output, overwrite, **options, progress=progress)
            manifest, size = written.manifest, written.bytes
        else:
            options |= {"precision": precision, "opset": opset, "data": _data(data_name, loaded)}
            manifest = export_bundle(loaded.network, output, overwrite, **options, progress=progress)
            size = sum(file.bytes for file in manifest.files)
    report = {
        "path" if single_file else "bundle": str(output),
        "branches": manifest.branch_count(),
        "bytes": size,
        "seconds": round(time.perf_counter() - started, 2),
        "agent_trained": manifest.agent_trained,
        "verification": manifest.verification.model_dump(mode="json"),
    }
    if not single_file:
        changed = manifest.precision_report
        report["precision"] = manifest.precision
        report["precision_report"] = None if changed is None else changed.model_dump(mode="json")
    if as_json:
        print_json(report)
        return
    deviation = manifest.verification.max_branch_deviation
    checked = "not verified" if deviation is None else f"largest deviation {deviation:.1e}"
    click.echo(
        f"{output}: {report['branches']} branches, {size / 1e6:.1f} MB, {checked}, {report['seconds']} s"
    )
    if manifest.precision_report is not None:
        click.echo("\n".join(manifest.precision_report.lines()))
    if not manifest.agent_trained:
        click.echo("the agent is untrained and takes all groups everywhere; rnp-train trains one", err=True)


def _data(name: str | None, loaded: Checkpoint) -> ImageData | None:
    """The data set, in the form the network takes."""
    from rnp_deploy.datasets import load_data

    form = loaded.preprocessing
    if name is None:
        return None
    if form is None:
        return load_data(name)
    return load_data(name, form.size, form.colour, form.mean, form.std)


def _check_output(output: Path, overwrite: bool, single_file: bool) -> None:
    """Refuse an output before any work is done for it."""
    from rnp_deploy.atomic import check_output, check_output_file
    from rnp_deploy.exporters.single_file import SINGLE_FILE_MARKER

    if single_file:
        check_output_file(output, overwrite=overwrite, marker=SINGLE_FILE_MARKER)
    else:
        check_output(output, overwrite=overwrite, marker="manifest.json")


def _load(checkpoint: Path | None, model: str | None, **options: Any) -> Checkpoint:
    from rnp_deploy.network.checkpoint import Checkpoint, load_checkpoint
    from rnp_deploy.network.model_sources import build_model, load_weights
    from rnp_deploy.network.runtime_pruned import RuntimePrunedNetwork

    if checkpoint is not None:
        _refuse_given((*PRUNING_NAMES, *IMAGE_NAMES, "weights", "weights_section", "ignore_keys"))
    settings = settings_from(**{name: options.pop(name) for name in PRUNING_NAMES})
    image = [options.pop(name) for name in IMAGE_NAMES]
    weights = options["weights"]
    if model is None:
        if checkpoint is None:
            raise click.UsageError("pass a CHECKPOINT, or a --model")
        return load_checkpoint(checkpoint)
    source = build_model(model, parse_arguments(options["model_args"]))
    if checkpoint is not None:
        return load_checkpoint(checkpoint, source.module)
    if weights is not None:
        section, ignored = options["weights_section"], options["ignore_keys"]
        report_weights(weights, load_weights(source.module, weights, section, ignored))
    preprocessing = preprocessing_from(source.preprocessing, *image)
    example = torch_example(preprocessing)
    return Checkpoint(
        RuntimePrunedNetwork.from_settings(source.module, example, settings), preprocessing=preprocessing
    )


def _refuse_given(names: Sequence[str]) -> None:
    """Say of options that a checkpoint has settled that they come too late."""
    context = click.get_current_context()
    given = [n for n in names if context.get_parameter_source(n) == click.core.ParameterSource.COMMANDLINE]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise click.UsageError(f"{options}: a CHECKPOINT was trained with its own; leave it out")


def _modes(pairs: tuple[str, ...], rest: str) -> dict[str, str]:
    modes = {pattern: mode for pattern, _, mode in (pair.rpartition("=") for pair in pairs)}
    if not all(modes) or not set(modes.values()) <= {"pairs", "outputs"}:
        raise InputError(f"--branches-for {' '.join(pairs)}: use PATTERN=pairs or PATTERN=outputs")
    modes.setdefault("*", rest)
    return modes


if __name__ == "__main__":
    main()
