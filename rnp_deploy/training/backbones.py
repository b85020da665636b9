"""Backbones that ship with the package; a checkpoint names one and its arguments."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from rnp_deploy.errors import InputError

__all__ = ["BACKBONES", "digits_cnn"]

_CONVS = 4
_POOLED_SIZE = 4


def digits_cnn(classes: int = 10, widths: str = "32,32,64,64") -> nn.Module:
    """Four 3x3 convolutions with batch norm for 16x16 grey images, and a linear head.

    Args:
        classes: Number of logits.
        widths: Output channels of the convolutions, comma-separated, since the arguments
            are kept in a checkpoint as JSON scalars.

    Returns:
        A network from ``[N, 1, 16, 16]`` to logits ``[N, classes]``, its weights drawn from
        torch's global random state.

    Raises:
        InputError: ``classes`` < 2, or ``widths`` is not four positive integers.
    """
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise InputError(f"digits-cnn got classes={classes!r}; pass an integer of at least 2")
    try:
        channels = [1, *(int(width) for width in widths.split(","))]
    except (AttributeError, ValueError):
        channels = []
    if len(channels) != _CONVS + 1 or min(channels) < 1:
        raise InputError(f"digits-cnn got widths={widths!r}; pass four positive integers, as 32,32,64,64")
    layers: list[nn.Module] = []
    for conv in range(_CONVS):
        layers += [
            nn.Conv2d(channels[conv], channels[conv + 1], kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(channels[conv + 1]),
            nn.ReLU(),
        ]
        if conv % 2:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * _POOLED_SIZE**2, classes))


#: Name in a checkpoint → what builds it from JSON scalars.
BACKBONES: dict[str, Callable[..., nn.Module]] = {"digits-cnn": digits_cnn}
