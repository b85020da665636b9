"""``rnp-train``: data → checkpoint."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnp_deploy.bundle.manifest import Preprocessing
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
)
from rnp_deploy.training import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from rnp_deploy.network.checkpoint import Architecture

__all__ = ["main"]

_BACKBONE = "digits-cnn"
_SAMPLE_IMAGES = 12
_POSITIVE = click.IntRange(min=1)
_DEFAULTS = TrainingConfig()
_DIGITS = Preprocessing(colour="L", size=(16, 16), mean=(0.0,), std=(1.0,))


@click.command("rnp-train", cls=RnpCommand, context_settings={"show_default": True})
@click.option("--data", "data_name", default="digits", help="Data set; digits: 8x8 scans, from scikit-learn.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Checkpoint directory to write."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=_DEFAULTS.seed, help="Random seed.")
@click.option(
    "--penalty",
    type=click.FloatRange(min=0),
    default=_DEFAULTS.penalty,
    help="Price of one more channel group; the mean classification loss under random options is 1.",
)
@model_options
@pruning_options
@click.option(
    "--widths", default="32,32,64,64", help="Output channels of the four convolutions of digits-cnn."
)
@click.option(
    "--backbone-epochs", type=_POSITIVE, default=_DEFAULTS.backbone_epochs, help="Epochs before pruning."
)
@click.option(
    "--random-epochs", type=_POSITIVE, default=_DEFAULTS.random_epochs, help="Epochs under random options."
)
@click.option(
    "--rounds",
    type=_POSITIVE,
    default=_DEFAULTS.rounds,
    help=f"Alternations of {_DEFAULTS.agent_minibatches} minibatches for the agent "
    f"and {_DEFAULTS.backbone_minibatches} for the backbone.",
)
@click.option(
    "--sample-images",
    type=click.Path(path_type=Path),
    help=f"Directory to write {_SAMPLE_IMAGES} held-out scans to, as PNG files for rnp-run.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier checkpoint.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def main(
    data_name: str,
    output: Path,
    sample_images: Path | None,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a CNN and the agent that prunes it at run time.

    Without --model the CNN is a small one, digits-cnn, and two CPU cores take one to two minutes.
    --input-size and --colour make the data fit a model; digits are 16x16 and grey by default.
    """
    import torch

    from rnp_deploy.atomic import check_output
    from rnp_deploy.datasets import load_data, write_sample_images
    from rnp_deploy.network.checkpoint import CONFIG_FILE, Checkpoint, save_checkpoint
    from rnp_deploy.training.algorithm import train

    check_output(output, overwrite=overwrite, marker=CONFIG_FILE)
    schedule = {field.name: settings.pop(field.name) for field in fields(_DEFAULTS) if field.name in settings}
    pruning = settings_from(**{name: settings.pop(name) for name in PRUNING_NAMES})
    config = TrainingConfig(pruning=pruning, **schedule)
    started = time.perf_counter()
    preprocessing = preprocessing_from(_DIGITS, *(settings.pop(name) for name in IMAGE_NAMES))
    data = load_data(data_name, preprocessing.size, preprocessing.colour)
    torch.manual_seed(config.seed)
    architecture, backbone = _backbone(len(data.classes), **settings)
    with progress_on_stderr() as progress:
        result = train(backbone, data, config, progress)
    calibration = result.calibration
    checkpoint = Checkpoint(result.network, architecture, data.preprocessing, data.classes, calibration)
    save_checkpoint(checkpoint, output, overwrite=overwrite)
    if sample_images is not None:
        write_sample_images(data, sample_images, _SAMPLE_IMAGES)
    if as_json:
        seconds = round(time.perf_counter() - started, 2)
        report = calibration.model_dump(mode="json")
        print_json(
            {"checkpoint": str(output), "seed": config.seed, "seconds": seconds, "calibration": report}
        )
        return
    point = calibration.points[0]
    click.echo(
        f"test accuracy {_percent(point.accuracy)} at {_percent(point.macs_share)} of the MACs "
        f"(full network {_percent(calibration.full_accuracy)}, backbone before pruning "
        f"{_percent(calibration.backbone_accuracy)}; {calibration.samples} held-out images)"
    )


def _backbone(
    classes: int,
    widths: str,
    model: str | None,
    model_args: tuple[str, ...],
    weights: str | None,
    weights_section: str | None,
    ignore_keys: tuple[str, ...],
) -> tuple[Architecture, nn.Module]:
    from rnp_deploy.network.checkpoint import Architecture
    from rnp_deploy.network.model_sources import build_model, is_library_model, load_weights
    from rnp_deploy.training.backbones import BACKBONES

    if model is None:
        own = {"classes": classes, "widths": widths}
        return Architecture(name=_BACKBONE, arguments=own), BACKBONES[_BACKBONE](**own)  # type: ignore[arg-type]
    arguments = parse_arguments(model_args)
    if is_library_model(model):
        arguments = {"num_classes": classes, **arguments}
    module = build_model(model, arguments).module
    if weights is not None:
        report_weights(weights, load_weights(module, weights, weights_section, ignore_keys))
    return Architecture(name=model, arguments=arguments), module


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
