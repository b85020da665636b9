"""``rnp-train``: data → checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnp_deploy.bundle.calibration import Calibration
from rnp_deploy.canonical_json import dump_json
from rnp_deploy.progress import no_progress
from rnp_deploy.tools.command import RnpCommand, print_json, progress_on_stderr
from rnp_deploy.tools.model_options import (
    IMAGE_NAMES,
    PRUNING_NAMES,
    image_form,
    model_options,
    parse_arguments,
    pruning_options,
    report_weights,
    settings_from,
)
from rnp_deploy.training import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from rnp_deploy.datasets import ImageData
    from rnp_deploy.network.checkpoint import Architecture
    from rnp_deploy.training.baselines import BaselinePoint
    from rnp_deploy.training.progress_log import EpochLog, EpochRow

__all__ = ["main"]

_BACKBONE = "digits-cnn"
_SAMPLE_IMAGES = 12
_DEFAULTS = TrainingConfig()
_NUMBERS = {
    "seed": "Random seed.",
    "penalty": "Price of one more channel group where rnp-run names none; the mean classification loss "
    "under random options is 1.",
    "gamma": "γ of Q-learning, 0..1.",
    "batch_size": "Images of a minibatch, over all processes.",
    "backbone_epochs": "Epochs before pruning; 0 for a backbone that is trained.",
    "random_epochs": "Epochs under random options.",
    "rounds": "Alternations of agent and backbone.",
    "agent_minibatches": "Minibatches of Q-learning in a round.",
    "backbone_minibatches": "Minibatches for the backbone in a round.",
    "backbone_rate": "Adam's learning rate for the backbone, alone and under random options.",
    "tuning_rate": "The same under the agent.",
    "agent_rate": "The same for Q-learning.",
    "label_smoothing": "Of the cross entropy, 0..1.",
    "calibration_images": "Held-out images, at most, for the curve penalty → accuracy and MACs.",
}


def _number_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, words in reversed(_NUMBERS.items()):
        default = getattr(_DEFAULTS, name)
        kind = click.IntRange(min=0) if isinstance(default, int) else click.FloatRange(min=0)
        command = click.option(f"--{name.replace('_', '-')}", type=kind, default=default, help=words)(command)
    return command


@click.command("rnp-train", cls=RnpCommand, context_settings={"show_default": True})
@click.option(
    "--data",
    "data_name",
    default="digits",
    help="digits, cifar10:DIR, cifar100:DIR or folder:DIR; nothing is downloaded.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out images of a folder that cannot be read.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Checkpoint directory to write."
)
@model_options
@pruning_options
@click.option("--widths", default="32,32,64,64", help="Output channels of the convolutions of digits-cnn.")
@_number_options
@click.option(
    "--penalty-range",
    type=float,
    nargs=2,
    default=_DEFAULTS.penalty_range,
    help="Lowest and highest price the agent is trained for.",
)
@click.option(
    "--fixed-penalty", is_flag=True, help="The paper's training: for --penalty alone, by the plain loss."
)
@click.option("--mixed-precision", is_flag=True, help="Compute the backbone in bfloat16.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Processes that read images ahead.")
@click.option("--baselines", is_flag=True, help="Also train narrow networks and compare, in table and plot.")
@click.option("--resume", is_flag=True, help="Go on with an unfinished run of this output, if there is one.")
@click.option(
    "--save-every", type=click.FloatRange(min=0), default=30.0, help="Seconds between saved states."
)
@click.option(
    "--tensorboard", type=click.Path(path_type=Path), help="Directory to write TensorBoard logs to."
)
@click.option(
    "--sample-images",
    type=click.Path(path_type=Path),
    help=f"Directory to write {_SAMPLE_IMAGES} held-out images to, as PNG files for rnp-run.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier checkpoint, or an unfinished run.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON on stdout.")
def main(output: Path, resume: bool, overwrite: bool, as_json: bool, device: str, **options: Any) -> None:
    """Train a CNN and the agent that prunes it at run time.

    Without --model the CNN is a small one, digits-cnn, and two CPU cores take about three minutes. A
    run that was killed is gone on with by the same command and --resume. Several processes share a
    run under torchrun: torchrun --nproc-per-node 2 -m rnp_deploy.tools.train …
    """
    from rnp_deploy.atomic import check_output
    from rnp_deploy.network.checkpoint import CONFIG_FILE
    from rnp_deploy.training import processes

    if resume and not overwrite and (output / CONFIG_FILE).is_file():
        click.echo(f"{output} is finished already", err=True)
        return
    check_output(output, overwrite=overwrite, marker=CONFIG_FILE)
    on = processes.torch_device(device)
    with processes.join(on):
        report = _train(output, resume, overwrite, device, **options)
    if report is None:
        return
    if as_json:
        print_json(report)
        return
    _print_report(report)


def _train(  # noqa: PLR0913 - the options of the command
    output: Path,
    resume: bool,
    overwrite: bool,
    device: str,
    data_name: str,
    skip_bad: bool,
    sample_images: Path | None,
    tensorboard: Path | None,
    baselines: bool,
    workers: int,
    save_every: float,
    **options: Any,
) -> dict[str, Any] | None:
    """Train and write; the report, or None in all processes but the first."""
    import matplotlib  # noqa: F401 - missed now rather than after hours
    import torch

    from rnp_deploy.datasets import load_data, write_sample_images
    from rnp_deploy.network.checkpoint import Checkpoint, save_checkpoint
    from rnp_deploy.training import RunSettings, processes, train
    from rnp_deploy.training.baselines import compare
    from rnp_deploy.training.progress_log import no_log
    from rnp_deploy.training.run_state import begin_run, end_run

    started = time.perf_counter()
    config = _config(options)
    state = output.with_name(f"{output.name}.run")
    run = RunSettings(device, workers, state, resume, save_every)
    first = processes.rank() == 0
    if first:
        begin_run(state, resume=resume, overwrite=overwrite)
    with progress_on_stderr() if first else contextlib.nullcontext(no_progress) as progress:
        form = image_form(*(options.pop(name) for name in IMAGE_NAMES))
        data = load_data(data_name, **form, skip_bad=skip_bad, progress=progress)
        if data.skipped and first:
            click.echo(f"{data.skipped} images that cannot be read were left out", err=True)
        if sample_images is not None and first:
            write_sample_images(data, sample_images, _SAMPLE_IMAGES)
        torch.manual_seed(config.seed)
        architecture, backbone = _backbone(data, **options)
        with _epoch_log(tensorboard) if first else contextlib.nullcontext(no_log) as log:
            result = train(backbone, data, config, run, progress, log)
        points = compare(result, backbone, data, config, run, progress) if baselines else ()
    if not first:
        return None
    checkpoint = Checkpoint(
        result.network.cpu(), architecture, data.preprocessing, data.classes, result.calibration
    )
    attachments = _attachments(result.calibration, points)
    save_checkpoint(checkpoint, output, overwrite=overwrite, attachments=attachments)
    end_run(state)
    return {
        "checkpoint": str(output),
        "seed": config.seed,
        "seconds": round(time.perf_counter() - started, 2),
        "penalty": config.penalty,
        "skipped": data.skipped,
        "calibration": result.calibration.model_dump(mode="json"),
        "baselines": [dataclasses.asdict(point) for point in points],
    }


def _config(options: dict[str, Any]) -> TrainingConfig:
    """Takes what it needs out of the options."""
    numbers = {name: options.pop(name) for name in _NUMBERS}
    prices = options.pop("penalty_range")
    # The paper's training, and nothing that the paper does not have.
    paper: dict[str, Any] = {"penalty_range": None, "relative_loss": False, "random_share": 0.0}
    return TrainingConfig(
        pruning=settings_from(**{name: options.pop(name) for name in PRUNING_NAMES}),
        **(paper if options.pop("fixed_penalty") else {"penalty_range": prices}),
        mixed_precision=options.pop("mixed_precision"),
        **numbers,
    )


def _backbone(
    data: ImageData,
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
        if weights is not None or model_args:
            raise click.UsageError("--weights and --model-arg belong to a --model")
        if data.preprocessing.size != (16, 16) or data.preprocessing.colour != "L":
            raise click.UsageError(
                f"{_BACKBONE} takes 16x16 grey images; pass a --model for {data.name}, "
                "or --input-size 16 --colour L"
            )
        own = {"classes": len(data.classes), "widths": widths}
        return Architecture(name=_BACKBONE, arguments=own), BACKBONES[_BACKBONE](**own)  # type: ignore[arg-type]
    arguments = parse_arguments(model_args)
    if is_library_model(model):
        arguments = {"num_classes": len(data.classes), **arguments}
    module = build_model(model, arguments).module
    if weights is not None:
        report_weights(weights, load_weights(module, weights, weights_section, ignore_keys))
    return Architecture(name=model, arguments=arguments), module


@contextlib.contextmanager
def _epoch_log(tensorboard: Path | None) -> Iterator[EpochLog]:
    """A row of a table on stderr for each epoch, and the same for TensorBoard where it is asked for."""
    from rnp_deploy.training.progress_log import tensorboard_log

    with contextlib.ExitStack() as stack:
        also = None if tensorboard is None else stack.enter_context(tensorboard_log(tensorboard))
        titles = ("phase", "step", "loss", "L_cls", "accuracy", "option", "ε", "rate", "s")
        head = "{:24} {:>14} {:>8} {:>8} {:>8} {:>6} {:>5} {:>8} {:>7}\n".format(*titles)

        def log(row: EpochRow) -> None:
            nonlocal head
            option = "" if row.mean_option is None else f"{row.mean_option:.2f}"
            epsilon = "" if row.epsilon is None else f"{row.epsilon:.2f}"
            rate = "" if row.rate is None else f"{row.rate:.1e}"
            click.echo(
                f"{head}{row.phase:24} {f'{row.step}/{row.steps}':>14} {row.loss:8.4f} {row.class_loss:8.4f} "
                f"{100 * row.accuracy:6.1f} % {option:>6} {epsilon:>5} {rate:>8} {row.seconds:7.1f}",
                err=True,
            )
            head = ""
            if also is not None:
                also(row)

        yield log


def _attachments(calibration: Calibration, points: Sequence[BaselinePoint]) -> dict[str, bytes]:
    from rnp_deploy.training.plots import baselines_png, calibration_png

    files = {"calibration.png": calibration_png(calibration)}
    if points:
        files["baselines.json"] = dump_json([dataclasses.asdict(point) for point in points]).encode()
        files["baselines.png"] = baselines_png(points, f"{calibration.data}, {calibration.samples} images")
    return files


def _print_report(report: dict[str, Any]) -> None:
    calibration = Calibration.model_validate_json(dump_json(report["calibration"]))
    for point in report["baselines"]:
        click.echo(
            f"{point['method']:42} {point['setting']:9.4g} {_percent(point['macs_share']):>8} of the MACs "
            f"{_percent(point['accuracy']):>8}"
        )
    point = calibration.at(report["penalty"])
    click.echo(
        f"test accuracy {_percent(point.accuracy)} at {_percent(point.macs_share)} of the MACs "
        f"(full network {_percent(calibration.full_accuracy)}, backbone before pruning "
        f"{_percent(calibration.backbone_accuracy)}; {calibration.samples} held-out images); "
        f"penalty {calibration.points[0].penalty:.3g} to {calibration.points[-1].penalty:.3g}: "
        f"{_percent(calibration.points[0].macs_share)} to {_percent(calibration.points[-1].macs_share)} of the MACs"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


if __name__ == "__main__":
    main()
