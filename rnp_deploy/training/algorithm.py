"""Algorithm 1 of the paper: backbone, random options, then agent and backbone in turn."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rnp_deploy.bundle.manifest import Calibration
from rnp_deploy.datasets import ImageData
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.progress import Progress, no_progress
from rnp_deploy.training.config import TrainingConfig
from rnp_deploy.training.evaluation import accuracy, evaluate
from rnp_deploy.training.minibatches import minibatches
from rnp_deploy.training.phases import (
    alternate,
    balanced_alpha,
    train_backbone,
    tune_under_random_options,
)

__all__ = ["TrainingResult", "train"]


@dataclass(frozen=True)
class TrainingResult:
    """A trained network, in eval mode, and what it does on the held-out split."""

    network: RuntimePrunedNetwork
    calibration: Calibration


def train(
    backbone: nn.Module, data: ImageData, config: TrainingConfig, progress: Progress = no_progress
) -> TrainingResult:
    """Train a backbone, and then the agent that prunes it at run time.

    The same seed, first weights and machine give the same result, bit for bit. Torch's
    global random state is left as it was.

    Args:
        backbone: Any CNN that torch.fx can trace; left untouched.
        data: Its train split is learnt from; its test split only fills the calibration.
        config: Sizes of all phases.
        progress: Told of every minibatch.

    Raises:
        NetworkError: The backbone cannot be pruned; found before anything is trained.
        TrainingError: A loss is no longer a finite number.
    """
    images, labels = map(torch.from_numpy, data.train.read(np.arange(len(data.train))))
    example = images[:1]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        RuntimePrunedNetwork.from_settings(backbone, example, config.pruning)  # refuses, if it does, at once
        backbone = copy.deepcopy(backbone)
        batches = minibatches(images, labels, config.batch_size, config.distortion)
        epoch = max(len(images) // config.batch_size, 1)
        train_backbone(backbone, batches, config.backbone_epochs * epoch, config, progress)
        # Made of the trained backbone: its filters' norms order the groups.
        network = RuntimePrunedNetwork.from_settings(
            backbone, example, config.pruning, penalty=config.penalty
        )
        network.agent.decoder.reset_parameters()  # Q-learning starts without the untrained agent's liking
        tune_under_random_options(network, batches, config.random_epochs * epoch, config, progress)
        alternate(network, batches, balanced_alpha(network, batches, epoch, config), config, progress)
    network.agent.trained = True
    return TrainingResult(network.eval(), _calibration(backbone.eval(), network, data))


def _calibration(backbone: nn.Module, network: RuntimePrunedNetwork, data: ImageData) -> Calibration:
    images, labels = map(torch.from_numpy, data.test.read(np.arange(len(data.test))))

    def full(batch: Tensor) -> Tensor:
        return network.run(batch, network.full_options(len(batch)))

    return Calibration(
        data=f"{data.name}:test",
        samples=len(labels),
        backbone_accuracy=accuracy(backbone, images, labels),
        full_accuracy=accuracy(full, images, labels),
        points=(evaluate(network, images, labels),),
    )
