"""The options of commands that take a backbone and say what is pruned of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.errors import InputError
from rnp_deploy.preprocessing import make_preprocessing
from rnp_deploy.pruning_settings import PruningSettings

if TYPE_CHECKING:
    from torch import Tensor

    from rnp_deploy.network.model_sources import LoadedWeights

__all__ = [
    "IMAGE_NAMES",
    "PRUNING_NAMES",
    "image_form",
    "model_options",
    "parse_arguments",
    "preprocessing_from",
    "pruning_options",
    "report_weights",
    "settings_from",
    "torch_example",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_DEFAULTS = PruningSettings()
#: Parameters of :func:`image_form` and :func:`settings_from` that the options fill.
IMAGE_NAMES = ("input_size", "colour", "mean", "std")
PRUNING_NAMES = ("groups", "groups_for", "skip", "align", "granularity", "min_macs_share")
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _together(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    def add(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


model_options = _together(
    click.option(
        "--model",
        help="Backbone: torchvision:NAME, timm:NAME or package.module:factory, which is imported and called.",
    ),
    click.option("--model-arg", "model_args", multiple=True, help="NAME=VALUE, passed to the model; repeat."),
    click.option(
        "--weights",
        type=click.Path(),
        help="Its weights: safetensors, or a .pt state dict; no code in it is run.",
    ),
    click.option(
        "--weights-section", help="Key of the state dict in FILE; default: averaged (EMA) weights first."
    ),
    click.option(
        "--ignore-key",
        "ignore_keys",
        multiple=True,
        help="Pattern of weights that may be missing or too many.",
    ),
    click.option("--input-size", help="H or HxW in pixels; default: what the library says of the model."),
    click.option("--colour", type=click.Choice(["L", "RGB", "BGR"]), help="Channels of the input images."),
    click.option("--mean", help="Of each channel, of pixels in 0..1, e.g. 0.485,0.456,0.406."),
    click.option("--std", help="As --mean."),
)

pruning_options = _together(
    click.option(
        "--groups",
        type=click.IntRange(min=2),
        default=_DEFAULTS.groups,
        show_default=True,
        help="Channel groups of each prunable convolution.",
    ),
    click.option(
        "--groups-for", multiple=True, help="PATTERN=K: other groups for the convolutions it matches; repeat."
    ),
    click.option("--skip", multiple=True, help="Pattern of convolutions to leave whole; repeat."),
    click.option(
        "--align",
        type=click.IntRange(min=1),
        default=_DEFAULTS.align,
        show_default=True,
        help="Round widths up to a multiple of this many channels, where a group is as wide.",
    ),
    click.option(
        "--granularity",
        type=click.Choice(["conv", "block"]),
        default=_DEFAULTS.granularity,
        show_default=True,
        help="One decision for each convolution, or for all of a block.",
    ),
    click.option(
        "--min-macs-share",
        type=click.FloatRange(0, 1, max_open=True),
        default=_DEFAULTS.min_macs_share,
        show_default=True,
        help="Leave a convolution whole whose option changes less than this share of the MACs.",
    ),
)


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """``("num_classes=10", "act=relu")`` → keyword arguments; raises InputError."""
    arguments = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"{pair!r} is not NAME=VALUE")
        try:
            arguments[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[name] = text
    return arguments


def settings_from(groups_for: Sequence[str], skip: Sequence[str], **values: Any) -> PruningSettings:
    """The pruning options as one value; raises InputError."""
    overrides = _parse_pairs(groups_for)
    try:
        return PruningSettings.checked(overrides=overrides, skip=tuple(skip), **values)
    except InputError as err:  # click has checked the others
        raise InputError(f"--groups-for {' '.join(groups_for)}: {err}") from err


def _parse_pairs(pairs: Sequence[str]) -> dict[str, int]:
    """``("layer4.*=2",)`` → pattern → number; raises InputError."""
    parsed = {}
    for pair in pairs:
        pattern, _, number = pair.rpartition("=")
        if not pattern or not number.isdecimal():
            raise InputError(f"{pair!r} is not PATTERN=NUMBER")
        parsed[pattern] = int(number)
    return parsed


def preprocessing_from(
    known: Preprocessing | None,
    input_size: str | None,
    colour: str | None,
    mean: str | None,
    std: str | None,
) -> Preprocessing:
    """What the options say, and where they are silent what is known; raises InputError.

    Where nothing is known: 224x224, RGB, the mean and deviation of ImageNet.
    """
    colour = colour or (known.colour if known else "RGB")
    values: dict[str, Any] = {"size": (224, 224), **(known.model_dump() if known else {}), "colour": colour}
    form = image_form(input_size, colour, mean, std)
    for name in ("mean", "std"):
        values[name] = _statistic(name, known, colour) if form[name] is None else form[name]
    if form["size"] is not None:
        values["size"] = form["size"]
        if known is not None and known.shorter_side is not None:
            values["shorter_side"] = round(known.shorter_side * max(values["size"]) / max(known.size))
    return make_preprocessing(**values)


def image_form(
    input_size: str | None, colour: str | None, mean: str | None, std: str | None
) -> dict[str, Any]:
    """The image options as ``size`` (H, W), ``colour``, ``mean`` and ``std``; None where they are silent.

    Raises:
        InputError: One of them is no size, or not made of numbers.
    """
    size = None
    if input_size is not None:
        sizes = re.fullmatch(r"(\d+)(?:x(\d+))?", input_size)
        if sizes is None:
            raise InputError(f"input size {input_size!r} is not H or HxW, in pixels")
        size = (int(sizes[1]), int(sizes[2] or sizes[1]))
    values = {"mean": mean, "std": std}
    numbers = {name: None if text is None else _numbers(text, name) for name, text in values.items()}
    return {"size": size, "colour": colour, **numbers}


def _statistic(name: str, known: Preprocessing | None, colour: str) -> tuple[float, ...]:
    """Mean or deviation for a colour order, from what is known of another, else ImageNet's."""
    if colour == "L":
        return getattr(known, name) if known is not None and known.colour == "L" else (0.5,)
    if known is None or known.colour == "L":
        order, values = "RGB", _IMAGENET[name]
    else:
        order, values = known.colour, getattr(known, name)
    return values if order == colour else values[::-1]


def report_weights(path: str, loaded: LoadedWeights) -> None:
    """Tell on stderr what of a file was read and what was passed over."""
    section = "" if loaded.section is None else f", section {loaded.section!r}"
    ignored = f"; ignored: {', '.join(loaded.ignored)}" if loaded.ignored else ""
    click.echo(f"weights: {path}{section}{ignored}", err=True)


def torch_example(preprocessing: Preprocessing) -> Tensor:
    """An example input of the shape that preprocessing makes."""
    import torch

    return torch.zeros(1, len(preprocessing.mean), *preprocessing.size)


def _numbers(text: str, what: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as err:
        raise InputError(f"{what} {text!r} is not made of numbers") from err
