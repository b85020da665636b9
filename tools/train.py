"""``rnp-train``: data → checkpoint."""

from __future__ import annotations

import time
from pathlib import Path

import click

from rnp_deploy.tools.command import RnpCommand, print_json, progress_on_stderr
from rnp_deploy.training import TrainingConfig

__all__ = ["main"]

_BACKBONE = "digits-cnn"
_SAMPLE_IMAGES = 12
_POSITIVE = click.IntRange(min=1)
_DEFAULTS = TrainingConfig()


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
@click.option(
    "--groups",
    type=click.IntRange(min=2),
    default=_DEFAULTS.groups,
    help="Channel groups of each prunable convolution.",
)
@click.option("--widths", default="32,32,64,64", help="Output channels of the four convolutions.")
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
    widths: str,
    sample_images: Path | None,
    overwrite: bool,
    as_json: bool,
    **settings: int | float,
) -> None:
    """Train a small CNN and the agent that prunes it at run time; on two CPU cores this takes one to two minutes."""
    import torch

    from rnp_deploy.atomic import check_output
    from rnp_deploy.datasets import load_data, write_sample_images
    from rnp_deploy.network.checkpoint import CONFIG_FILE, Architecture, Checkpoint, save_checkpoint
    from rnp_deploy.training.algorithm import train
    from rnp_deploy.training.backbones import BACKBONES

    check_output(output, overwrite=overwrite, marker=CONFIG_FILE)
    config = TrainingConfig(**settings)  # type: ignore[arg-type]
    started = time.perf_counter()
    data = load_data(data_name)
    architecture = Architecture(name=_BACKBONE, arguments={"classes": len(data.classes), "widths": widths})
    torch.manual_seed(config.seed)
    backbone = BACKBONES[_BACKBONE](**architecture.arguments)
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


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
