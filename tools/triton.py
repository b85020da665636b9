"""``rnp-triton``: checkpoint, bundle or engine set → a model of a Triton repository."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from rnp_deploy.tools.command import RnpCommand, print_json, progress_on_stderr

__all__ = ["main"]

_MIB = 2**20


@click.command("rnp-triton", cls=RnpCommand)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="REPOSITORY/NAME, the folder to write; the repository has to exist.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    help="Images in a batch, at most.  [default: 8, or what TensorRT engines take]",
)
@click.option(
    "--max-delay-ms",
    type=click.FloatRange(min=0, max=3_600_000),
    default=2.0,
    show_default=True,
    help="How long a request may wait for others to share its batch.",
)
@click.option(
    "--preferred-batch",
    "preferred_batches",
    type=click.IntRange(min=1),
    multiple=True,
    help="A size at which a batch goes without waiting longer; repeat.  [default: the largest]",
)
@click.option(
    "--instances",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that run the model, each with engines of its own.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "tensorrt", "torch"]),
    default="auto",
    show_default=True,
    help="auto: what the engine set was built for, else ONNX Runtime.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: the GPU for TensorRT engines, else the CPU.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Of each instance.  [default: one per core]")
@click.option(
    "--preload",
    type=click.Choice(["none", "common", "all"]),
    default="none",
    show_default=True,
    help="Engines that are opened before the model is ready.",
)
@click.option(
    "--policy",
    type=click.Choice(["regroup", "serial", "round-up"]),
    default="regroup",
    show_default=True,
    help="For images of a batch that decide differently.",
)
@click.option(
    "--memory-budget",
    type=click.IntRange(min=1),
    help="MiB of weights that the open engines of an instance may hold.  [default: no limit]",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier model.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def main(source: Path, output: Path, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Write a model of NVIDIA Triton's Python backend that serves SOURCE.

    SOURCE is a bundle or an engine set, which is verified and copied, or a checkpoint from
    rnp-train, which is exported as rnp-export does where it is told nothing.
    """
    from rnp_deploy.exporters.triton_repository import (
        TritonSettings,
        check_model_folder,
        write_triton_model,
    )

    budget = given.pop("memory_budget")
    settings = TritonSettings(**given, memory_budget_bytes=None if budget is None else budget * _MIB)
    check_model_folder(output, overwrite=overwrite)
    with _exported(source) as bundle:
        model = write_triton_model(bundle, output, overwrite, settings=settings)
    if as_json:
        print_json(vars(model) | {"name": output.name, "path": str(output), "files": list(model.files)})
        return
    click.echo(
        f"{output}: model {output.name!r} of a {model.kind}, {model.bytes / 1e6:.1f} MB, "
        f"batches of up to {model.max_batch} on the {'GPU' if model.device == 'cuda' else 'CPU'}; "
        f"tritonserver --model-repository {output.absolute().parent}"
    )


@contextmanager
def _exported(source: Path) -> Iterator[Path]:
    """The bundle of a checkpoint, while it is needed; anything else is what it is."""
    if not (source / "checkpoint.json").is_file():
        yield source
        return
    from rnp_deploy.exporters import export_bundle
    from rnp_deploy.network.checkpoint import load_checkpoint

    loaded = load_checkpoint(source)
    with tempfile.TemporaryDirectory(prefix="rnp-triton-") as folder, progress_on_stderr() as progress:
        export_bundle(
            loaded.network,
            Path(folder) / "bundle",
            calibration=loaded.calibration,
            preprocessing=loaded.preprocessing,
            classes=loaded.classes,
            progress=progress,
        )
        yield Path(folder) / "bundle"


if __name__ == "__main__":
    main()
