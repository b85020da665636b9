"""What a runtime-pruned network does on held-out images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rnp_deploy.bundle.manifest import CalibrationPoint
from rnp_deploy.network import RuntimePrunedNetwork

__all__ = ["accuracy", "evaluate"]

_BATCH = 256


def accuracy(classify: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """The share, 0..1, of images ``[N, C, H, W]`` whose largest logit is their label ``[N]``.

    Args:
        classify: Images → logits ``[N, classes]``; a module has to be in eval mode.
        images: The samples.
        labels: Their classes.
    """
    with torch.no_grad():
        predicted = torch.cat([classify(batch).argmax(dim=1) for batch in images.split(_BATCH)])
    return float((predicted == labels).double().mean())


def evaluate(
    network: RuntimePrunedNetwork, images: Tensor, labels: Tensor, penalty: float | None = None
) -> CalibrationPoint:
    """Let the agent decide, without exploration, and measure accuracy and cost.

    Args:
        network: Left in eval mode.
        images: ``[N, C, H, W]``.
        labels: ``[N]``.
        penalty: Price of one more group; None is the trained one.
    """
    network.eval()
    taken: list[Tensor] = []

    def classify(batch: Tensor) -> Tensor:
        logits: Tensor
        logits, options = network(batch, penalty)
        taken.append(options)
        return logits

    correct = accuracy(classify, images, labels)
    options = torch.cat(taken)
    # MACs are counted path by path in Python, and few paths are taken by many samples.
    paths, samples = options.unique(dim=0, return_counts=True)
    full = network.macs(network.full_options(1))
    share = (network.macs(paths) * samples.cpu()).sum() / (full * len(images))
    counts = [torch.bincount(column, minlength=network.groups + 1)[1:] for column in options.T]
    return CalibrationPoint(
        penalty=network.agent.penalty if penalty is None else penalty,
        accuracy=correct,
        macs_share=float(share),
        option_counts=tuple(tuple(column.tolist()) for column in counts),
    )
