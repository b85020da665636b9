"""What a runtime-pruned network does on held-out images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rnp_deploy.bundle.calibration import CalibrationPoint
from rnp_deploy.datasets import LabelledImages
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.agent import PenaltyScale
from rnp_deploy.pruning_settings import PENALTY_RANGE
from rnp_deploy.training.minibatches import split_batches

__all__ = [
    "Outcome",
    "Policy",
    "agent_policy",
    "calibration_points",
    "evaluate",
    "fixed_policy",
    "mean_macs_share",
    "outcomes",
    "point_of",
]

_BATCH = 256
_FIRST_POINTS = 12
_WIDEST_GAP = 0.08
_REFINEMENTS = 3

#: Images ``[n, C, H, W]`` and which of the evaluated images they are → logits, options ``[n, T]``.
Policy: TypeAlias = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


class Outcome(NamedTuple):
    """Of each image: ``options`` ``[N, T]`` taken, cross entropy ``losses`` ``[N]``, ``correct`` ``[N]`` bool."""

    options: Tensor
    losses: Tensor
    correct: Tensor

    @property
    def accuracy(self) -> float:
        """Share of the images whose largest logit is their label."""
        return float(self.correct.double().mean())


def agent_policy(network: RuntimePrunedNetwork, penalty: float | None) -> Policy:
    """The agent decides, without exploration; None is its own penalty."""
    return lambda images, _: network(images, penalty)


def fixed_policy(network: RuntimePrunedNetwork, options: Tensor) -> Policy:
    """Given options, ``[T]`` for all images or ``[N, T]``."""

    def run(images: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        own = options[rows] if options.ndim == 2 else options.expand(len(images), -1)
        return network.run(images, own.to(images.device)), own

    return run


def outcomes(
    network: torch.nn.Module,
    images: LabelledImages,
    policies: Sequence[Policy],
    rows: NDArray[np.int64] | None = None,
    workers: int = 0,
    batch_size: int = _BATCH,
) -> tuple[Outcome, ...]:
    """What each policy does; the images are read once for all of them.

    Args:
        network: Set to eval mode, and left in it.
        images: Held-out.
        policies: See :data:`Policy`.
        rows: Which images; None is all.
        workers: Processes that read ahead.
        batch_size: Images computed at once.

    Raises:
        InputError: An image cannot be read.
    """
    network.eval()
    device = next(network.parameters()).device
    rows = np.arange(len(images)) if rows is None else rows
    parts: list[list[Outcome]] = [[] for _ in policies]
    first = 0
    with torch.no_grad():
        for batch, labels in split_batches(images, rows, batch_size, workers):
            here = slice(first, first + len(labels))
            on_device = batch.to(device)
            for policy, part in zip(policies, parts, strict=True):
                logits, options = policy(on_device, here)
                losses = F.cross_entropy(logits.float().cpu(), labels, reduction="none")
                part.append(Outcome(options.cpu(), losses, logits.argmax(dim=1).cpu() == labels))
            first = here.stop
    return tuple(Outcome(*(torch.cat(field) for field in zip(*part, strict=True))) for part in parts)


def evaluate(
    network: RuntimePrunedNetwork, images: LabelledImages, penalty: float | None = None
) -> CalibrationPoint:
    """Let the agent decide, without exploration, and measure accuracy and cost.

    Args:
        network: Left in eval mode.
        images: Held-out.
        penalty: Price of one more group; None is the agent's own.
    """
    (outcome,) = outcomes(network, images, [agent_policy(network, penalty)])
    return point_of(network, outcome, network.agent.penalty if penalty is None else penalty)


def mean_macs_share(network: RuntimePrunedNetwork, options: Tensor) -> float:
    """Mean backbone MACs of options ``[N, T]`` ÷ the full network's."""
    return float((network.macs(options).double() / network.macs(network.full_options(1))).mean())


def point_of(network: RuntimePrunedNetwork, outcome: Outcome, penalty: float) -> CalibrationPoint:
    """An outcome as a point of a calibration curve."""
    counts = zip(outcome.options.T, network.option_counts, strict=True)
    return CalibrationPoint(
        penalty=penalty,
        accuracy=outcome.accuracy,
        macs_share=mean_macs_share(network, outcome.options),
        option_counts=tuple(
            tuple(torch.bincount(column, minlength=k + 1)[1:].tolist()) for column, k in counts
        ),
    )


def calibration_points(
    network: RuntimePrunedNetwork,
    images: LabelledImages,
    rows: NDArray[np.int64] | None = None,
    workers: int = 0,
    batch_size: int = _BATCH,
) -> tuple[CalibrationPoint, ...]:
    """The curve penalty → accuracy, MACs and options, at rising penalties, the agent's own among them.

    Penalties are even on the agent's scale, and closer where the cost falls fast. A fixed agent's
    curve is measured over the same prices, by the shift of its Q-values.
    """
    scale = network.agent.scale or PenaltyScale(*PENALTY_RANGE)
    even = scale.penalty(torch.linspace(0, 1, _FIRST_POINTS)).tolist()
    wanted = sorted({*(_short(penalty) for penalty in even), network.agent.penalty})
    points: dict[float, CalibrationPoint] = {}
    for _ in range(_REFINEMENTS):
        done = outcomes(
            network, images, [agent_policy(network, p) for p in wanted], rows, workers, batch_size
        )
        for penalty, outcome in zip(wanted, done, strict=True):
            points[penalty] = point_of(network, outcome, penalty)
        curve = [points[penalty] for penalty in sorted(points)]
        wanted = []
        for left, right in itertools.pairwise(curve):
            if abs(left.macs_share - right.macs_share) > _WIDEST_GAP:
                ends = scale.position(torch.tensor([left.penalty, right.penalty]))
                middle = _short(float(scale.penalty(ends.mean())))
                wanted += [middle] if middle not in points else []
        if not wanted:
            break
    return tuple(points[penalty] for penalty in sorted(points))


def _short(penalty: float) -> float:
    """In six digits, as people write prices."""
    return float(f"{penalty:.6g}")
