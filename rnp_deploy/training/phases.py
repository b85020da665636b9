"""The phases of the paper's algorithm 1; :func:`rnp_deploy.training.algorithm.train` runs them in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from rnp_deploy.errors import TrainingError
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.progress import Progress
from rnp_deploy.training.config import TrainingConfig
from rnp_deploy.training.q_learning import epsilon_at, q_loss, rewards, roll_out

__all__ = ["Minibatches", "alternate", "balanced_alpha", "train_backbone", "tune_under_random_options"]

#: Endless ``(images [N, C, H, W], labels [N])``.
Minibatches: TypeAlias = Iterator[tuple[Tensor, Tensor]]


class _Descent:
    """Adam with a learning rate that falls to zero along a cosine within ``steps``."""

    def __init__(self, phase: str, parameters: Iterable[nn.Parameter], rate: float, steps: int) -> None:
        self.phase = phase
        self.steps = steps
        self.done = 0
        self._optimizer = Adam(parameters, rate)
        self._schedule = CosineAnnealingLR(self._optimizer, steps)

    def step(self, loss: Tensor) -> None:
        """Take one step; raises TrainingError where ``loss`` is not finite."""
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} in phase {self.phase!r}, step {self.done + 1} of {self.steps}; "
                "lower the learning rate, or look for values in the data that are not finite"
            )
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        self.done += 1


def train_backbone(
    backbone: nn.Module, batches: Minibatches, steps: int, config: TrainingConfig, progress: Progress
) -> None:
    """Train the plain backbone in place."""
    descent = _Descent("backbone", backbone.parameters(), config.backbone_rate, steps)
    backbone.train()
    while descent.done < steps:
        images, labels = next(batches)
        descent.step(_loss(backbone(images), labels, config).mean())
        progress(descent.phase, descent.done, steps)


def tune_under_random_options(
    network: RuntimePrunedNetwork,
    batches: Minibatches,
    steps: int,
    config: TrainingConfig,
    progress: Progress,
) -> None:
    """Tune the backbone in place under uniformly random options, per sample and decision."""
    descent = _Descent("random options", network.backbone.parameters(), config.backbone_rate, steps)
    network.train()
    while descent.done < steps:
        images, labels = next(batches)
        outputs = network.run(images, network.random_options(len(images)))
        descent.step(_loss(outputs, labels, config).mean())
        progress(descent.phase, descent.done, steps)


def balanced_alpha(
    network: RuntimePrunedNetwork, batches: Minibatches, steps: int, config: TrainingConfig
) -> float:
    """The α for which α·L_cls averages 1 under random options, over ``steps`` minibatches."""
    network.eval()
    total = 0.0
    with torch.no_grad():
        for _ in range(steps):
            images, labels = next(batches)
            outputs = network.run(images, network.random_options(len(images)))
            total += float(_loss(outputs, labels, config).mean())
    return steps / max(total, 1e-9)  # of tiny data every image may be learnt by heart


def alternate(
    network: RuntimePrunedNetwork,
    batches: Minibatches,
    alpha: float,
    config: TrainingConfig,
    progress: Progress,
) -> None:
    """Alternate, ``config.rounds`` times, N1 minibatches for the agent and N2 for the backbone."""
    agent = _Descent(
        "agent", network.agent.parameters(), config.agent_rate, config.rounds * config.agent_minibatches
    )
    backbone = _Descent(
        "backbone under the agent",
        network.backbone.parameters(),
        config.tuning_rate,
        config.rounds * config.backbone_minibatches,
    )
    for _ in range(config.rounds):
        network.eval()
        for _ in range(config.agent_minibatches):
            epsilon = epsilon_at(agent.done, agent.steps)
            agent.step(_agent_loss(network, *next(batches), epsilon, alpha, config))
            progress("agent and backbone", agent.done + backbone.done, agent.steps + backbone.steps)
        for _ in range(config.backbone_minibatches):
            backbone.step(_backbone_loss(network, *next(batches), config))
            progress("agent and backbone", agent.done + backbone.done, agent.steps + backbone.steps)


def _agent_loss(
    network: RuntimePrunedNetwork,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    alpha: float,
    config: TrainingConfig,
) -> Tensor:
    q_values, options, outputs = roll_out(network, images, epsilon)
    losses = _loss(outputs, labels, config)
    return q_loss(q_values, options, rewards(options, losses, config.penalty, alpha), config.gamma)


def _backbone_loss(
    network: RuntimePrunedNetwork, images: Tensor, labels: Tensor, config: TrainingConfig
) -> Tensor:
    network.eval()  # the agent is to see what it sees in use: batch norm's running statistics
    with torch.no_grad():
        _, options = network(images)
    # Random options keep the other paths fit: the agent still explores them in the next
    # round, and another penalty leads through them at run time.
    count = round(config.random_share * len(images))
    options[:count] = network.random_options(count)
    network.train()
    return _loss(network.run(images, options), labels, config).mean()


def _loss(logits: Tensor, labels: Tensor, config: TrainingConfig) -> Tensor:
    """L_cls of each sample, ``[N]``."""
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=config.label_smoothing)
