"""The phases of the paper's algorithm 1: in which order, and what a step of each descends.

:func:`rnp_deploy.training.algorithm.train` takes the steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from rnp_deploy.errors import TrainingError
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.training import processes
from rnp_deploy.training.config import TrainingConfig
from rnp_deploy.training.q_learning import Draws, q_loss, rewards, roll_out

__all__ = [
    "AGENT",
    "BACKBONE",
    "MEASURE",
    "RANDOM",
    "TUNING",
    "Descent",
    "Phase",
    "StepResult",
    "agent_step",
    "backbone_step",
    "options_step",
    "schedule",
    "tuning_step",
]

BACKBONE = "backbone"
RANDOM = "random options"
MEASURE = "measuring the loss"
AGENT = "agent"
TUNING = "backbone under the agent"


class Phase(NamedTuple):
    """Steps of one kind in a row: ``before`` of this kind have been taken, ``total`` there are."""

    name: str
    steps: int
    before: int
    total: int


class StepResult(NamedTuple):
    """What a step descends, its L_cls, both means over the minibatch, and how it classified.

    ``correct`` ``[N]`` bool, ``options`` ``[N, T]``, or None where there are no decisions.
    """

    loss: Tensor
    class_loss: Tensor
    correct: Tensor
    options: Tensor | None


def schedule(config: TrainingConfig, epoch: int) -> tuple[Phase, ...]:
    """Algorithm 1: the backbone, tuning under random options, then agent and backbone in turn.

    Between them α is measured, over one epoch.

    Args:
        config: Sizes of all phases.
        epoch: Minibatches of an epoch.
    """
    n1, n2, rounds = config.agent_minibatches, config.backbone_minibatches, config.rounds
    once = [
        (BACKBONE, config.backbone_epochs * epoch),
        (RANDOM, config.random_epochs * epoch),
        (MEASURE, epoch),
    ]
    phases = [Phase(name, steps, 0, steps) for name, steps in once if steps]
    for turn in range(rounds):
        phases.append(Phase(AGENT, n1, turn * n1, rounds * n1))
        phases.append(Phase(TUNING, n2, turn * n2, rounds * n2))
    return tuple(phases)


class Descent:
    """Adam with a learning rate that falls to zero along a cosine within ``steps``."""

    def __init__(self, phase: str, parameters: Iterable[nn.Parameter], rate: float, steps: int) -> None:
        self.phase, self.rate, self.steps = phase, rate, steps
        self.parameters = list(parameters)
        self.optimizer = Adam(self.parameters, rate)

    def rate_at(self, done: int) -> float:
        """The learning rate of the step after ``done`` steps."""
        return self.rate * (1 + math.cos(math.pi * done / self.steps)) / 2

    def step(self, loss: Tensor, done: int) -> None:
        """Take one step, the same in every process.

        Raises:
            TrainingError: ``loss`` is not finite, in any of them; no weight was changed by it.
        """
        self.optimizer.zero_grad()
        loss.backward()
        mean = processes.average_gradients(self.parameters, loss)
        slope = nn.utils.get_total_norm(p.grad for p in self.parameters if p.grad is not None)
        if not torch.isfinite(mean + slope):
            what = "loss" if not torch.isfinite(mean) else "norm of the gradient"
            raise TrainingError(
                f"the {what} is {(slope if torch.isfinite(mean) else mean).item()} in phase {self.phase!r}, "
                f"step {done + 1} of {self.steps}; "
                "lower the learning rate, or look for values in the data that are not finite"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_at(done)
        self.optimizer.step()


def backbone_step(backbone: nn.Module, images: Tensor, labels: Tensor, config: TrainingConfig) -> StepResult:
    """The plain backbone."""
    backbone.train()
    with processes.synced_batch_norms(backbone), _autocast(images, config):
        outputs = backbone(images)
    return _classified(outputs, labels, None, config)


def options_step(
    network: RuntimePrunedNetwork, images: Tensor, labels: Tensor, options: Tensor, config: TrainingConfig
) -> StepResult:
    """The backbone under given options ``[N, T]``, in the mode, train or eval, that it is in."""
    with processes.synced_batch_norms(network), _autocast(images, config):
        outputs = network.run(images, options)
    return _classified(outputs, labels, options, config)


def agent_step(
    network: RuntimePrunedNetwork,
    images: Tensor,
    labels: Tensor,
    draws: Draws,
    epsilon: float,
    alpha: float,
    config: TrainingConfig,
) -> StepResult:
    """The agent by Q-learning, the backbone fixed."""
    network.eval()
    with _autocast(images, config):
        q_values, options, outputs = roll_out(network, images, draws, epsilon)
    losses = _losses(outputs, labels, config)
    if config.relative_loss:
        with torch.no_grad(), _autocast(images, config):
            whole = network.run(images, network.full_options(len(images)).to(images.device))
        losses = losses - _losses(whole, labels, config)
    r = rewards(options, losses, draws.penalties, alpha)
    classified = _classified(outputs, labels, options, config)
    return classified._replace(loss=q_loss(q_values, options, r, config.gamma))


def tuning_step(
    network: RuntimePrunedNetwork, images: Tensor, labels: Tensor, draws: Draws, config: TrainingConfig
) -> StepResult:
    """The backbone under the agent's decisions, at the prices drawn."""
    network.eval()  # the agent is to see what it sees in use: batch norm's running statistics
    with torch.no_grad():
        _, options = network(images, draws.penalties)
    # Random options keep the other paths fit: the agent still explores them in the next round.
    place = processes.rank() + processes.count() * torch.arange(len(images), device=options.device)
    random = place < round(config.random_share * len(images) * processes.count())
    options = torch.where(random[:, None], draws.options, options)
    network.train()
    return options_step(network, images, labels, options, config)


def _classified(
    outputs: Tensor, labels: Tensor, options: Tensor | None, config: TrainingConfig
) -> StepResult:
    loss = _losses(outputs, labels, config).mean()
    return StepResult(loss, loss.detach(), outputs.detach().argmax(dim=1) == labels, options)


def _losses(logits: Tensor, labels: Tensor, config: TrainingConfig) -> Tensor:
    """L_cls of each sample, ``[N]``."""
    return F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=config.label_smoothing)


def _autocast(images: Tensor, config: TrainingConfig) -> torch.autocast:
    return torch.autocast(images.device.type, torch.bfloat16, enabled=config.mixed_precision)
