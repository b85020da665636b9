"""A training run of a second: few digits, a narrow backbone, every phase of algorithm 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rnp_deploy.datasets import ArrayImages, ImageData, LabelledImages, load_data
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.pruning_settings import PruningSettings
from rnp_deploy.training import TrainingConfig
from rnp_deploy.training.backbones import digits_cnn

__all__ = ["PHASE_STEPS", "TINY", "tensors", "tiny_backbone", "tiny_data", "tiny_network"]

TINY = TrainingConfig(
    pruning=PruningSettings(groups=2), batch_size=32, backbone_epochs=2, random_epochs=2, rounds=2,
    agent_minibatches=6, backbone_minibatches=3,
)  # fmt: skip

#: Of :data:`TINY` on :func:`tiny_data`, whose epoch is 4 minibatches.
PHASE_STEPS = (
    ("backbone", 8),
    ("random options", 8),
    ("measuring the loss", 4),
    ("agent", 6),
    ("backbone under the agent", 3),
    ("agent", 6),
    ("backbone under the agent", 3),
)


def tiny_data(change: Callable[[np.ndarray], np.ndarray] = lambda images: images) -> ImageData:
    """The first 128 digits, augmented as ever, to learn from, and 60 held out."""
    digits = load_data("digits")
    train, test = digits.train, digits.test
    assert isinstance(train, ArrayImages)
    return dataclasses.replace(
        digits,
        train=ArrayImages(change(train.images[:128]), train.labels[:128], train.augment),
        test=ArrayImages(*test.read(np.arange(60))),
    )


def tensors(images: LabelledImages) -> tuple[Tensor, Tensor]:
    """All of a split."""
    read, labels = images.read(np.arange(len(images)))
    return torch.from_numpy(read), torch.from_numpy(labels)


def tiny_backbone(widths: str = "4,4,4,4", dropout: float = 0.0) -> nn.Module:
    """Always the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        *layers, head = digits_cnn(widths=widths).children()
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []), head)


def tiny_network(widths: str = "4,4,4,4", groups: int = 2, **arguments: Any) -> RuntimePrunedNetwork:
    """Of that backbone, its agent untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return RuntimePrunedNetwork.from_backbone(
            tiny_backbone(widths), torch.zeros(1, 1, 16, 16), groups, **arguments
        )
