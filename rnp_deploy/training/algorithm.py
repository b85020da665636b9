"""Algorithm 1 of the paper: backbone, random options, then agent and backbone in turn."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from rnp_deploy.bundle.manifest import Calibration
from rnp_deploy.errors import InputError, TrainingError
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.progress import Progress, no_progress
from rnp_deploy.training.data import ImageData, minibatches
from rnp_deploy.training.evaluation import accuracy, evaluate
from rnp_deploy.training.q_learning import epsilon_at, q_loss, rewards, roll_out

__all__ = ["TrainingConfig", "TrainingResult", "train"]

_Batches = Iterator[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; the defaults fit the digits.

    Attributes:
        seed: Of everything random but the backbone's first weights, which the caller draws.
        groups: k.
        penalty: The price of one more group, the paper's -p.
        gamma: γ of the Q-learning loss.
        batch_size: Samples of a minibatch, in every phase.
        backbone_epochs: Passes over the train split for the plain backbone.
        random_epochs: Passes under random options.
        rounds: Alternations of agent and backbone.
        agent_minibatches: N1, Q-learning minibatches of a round.
        backbone_minibatches: N2, backbone minibatches of a round.
        backbone_rate: Adam's first learning rate for the plain backbone.
        tuning_rate: The same under random options and under the agent.
        agent_rate: The same for Q-learning.
        random_share: Share, 0..1, of samples that the backbone meets under random options
            while it is tuned under the agent.
        max_shift: Images move by up to so many pixels along H and W.
    """

    seed: int = 0
    groups: int = 4
    penalty: float = 0.1
    gamma: float = 1.0
    batch_size: int = 64
    backbone_epochs: int = 20
    random_epochs: int = 30
    rounds: int = 10
    agent_minibatches: int = 50
    backbone_minibatches: int = 40
    backbone_rate: float = 3e-3
    tuning_rate: float = 2e-3
    agent_rate: float = 2e-3
    random_share: float = 0.25
    distortion: float = 0.3
    agent_batch: int = 64

    def __post_init__(self) -> None:
        may_be_zero = {"seed", "penalty", "gamma", "random_share", "distortion"}
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf") or (value == 0 and field.name not in may_be_zero):
                raise InputError(f"{field.name} is {value!r}; pass a positive number")


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
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        example = data.train_images[:1]
        RuntimePrunedNetwork.from_backbone(backbone, example, config.groups)  # fail before the long part
        backbone = copy.deepcopy(backbone)
        batches = minibatches(data.train_images, data.train_labels, config.batch_size, config.distortion)
        steps_per_epoch = max(len(data.train_images) // config.batch_size, 1)
        train_backbone(backbone, batches, config.backbone_epochs * steps_per_epoch, config, progress)
        # The trained filters' norms order the groups.
        network = RuntimePrunedNetwork.from_backbone(backbone, example, config.groups, penalty=config.penalty)
        tune_under_random_options(network, batches, config.random_epochs * steps_per_epoch, config, progress)
        alpha = balanced_alpha(network, batches, steps_per_epoch)
        print('alpha', alpha)
        alternate(network, batches, alpha, config, progress)
        return TrainingResult(network.eval(), _calibration(backbone.eval(), network.eval(), data))


def train_backbone(
    backbone: nn.Module, batches: _Batches, steps: int, config: TrainingConfig, progress: Progress
) -> None:
    optimizer = Adam(backbone.parameters(), config.backbone_rate)
    schedule = CosineAnnealingLR(optimizer, steps)
    backbone.train()
    for step in range(steps):
        images, labels = next(batches)
        loss = F.cross_entropy(backbone(images), labels)
        _descend(optimizer, loss, "backbone", step)
        schedule.step()
        progress("backbone", step + 1, steps)


def tune_under_random_options(
    network: RuntimePrunedNetwork, batches: _Batches, steps: int, config: TrainingConfig, progress: Progress
) -> None:
    optimizer = Adam(network.backbone.parameters(), config.tuning_rate)
    schedule = CosineAnnealingLR(optimizer, steps)
    network.train()
    for step in range(steps):
        images, labels = next(batches)
        loss = F.cross_entropy(network.run(images, _random_options(network, len(images))), labels)
        _descend(optimizer, loss, "random options", step)
        schedule.step()
        progress("random options", step + 1, steps)


def balanced_alpha(network: RuntimePrunedNetwork, batches: _Batches, steps: int) -> float:
    """α such that α·L_cls averages 1 under random options."""
    network.eval()
    total = 0.0
    with torch.no_grad():
        for _ in range(steps):
            images, labels = next(batches)
            total += float(F.cross_entropy(network.run(images, _random_options(network, len(images))), labels))
    return steps / max(total, 1e-9)


def alternate(
    network: RuntimePrunedNetwork, batches: _Batches, alpha: float, config: TrainingConfig, progress: Progress
) -> None:
    agent_steps = config.rounds * config.agent_minibatches
    backbone_steps = config.rounds * config.backbone_minibatches
    agent_optimizer = Adam(network.agent.parameters(), config.agent_rate)
    backbone_optimizer = Adam(network.backbone.parameters(), config.tuning_rate)
    agent_schedule = CosineAnnealingLR(agent_optimizer, agent_steps)
    backbone_schedule = CosineAnnealingLR(backbone_optimizer, backbone_steps)
    agent_step = backbone_step = 0
    for _ in range(config.rounds):
        network.eval()
        for _ in range(config.agent_minibatches):
            images, labels = next(batches)
            q_values, options, outputs = roll_out(network, images, epsilon_at(agent_step, agent_steps))
            losses = F.cross_entropy(outputs, labels, reduction="none")
            loss = q_loss(q_values, options, rewards(options, losses, config.penalty, alpha), config.gamma)
            _descend(agent_optimizer, loss, "agent", agent_step)
            agent_schedule.step()
            agent_step += 1
            progress("agent and backbone", agent_step + backbone_step, agent_steps + backbone_steps)
        for _ in range(config.backbone_minibatches):
            images, labels = next(batches)
            network.eval()
            with torch.no_grad():
                _, options = network(images)
            network.train()
            count = int(config.random_share * len(images))
            options[:count] = _random_options(network, count)
            loss = F.cross_entropy(network.run(images, options), labels)
            _descend(backbone_optimizer, loss, "backbone under the agent", backbone_step)
            backbone_schedule.step()
            backbone_step += 1
            progress("agent and backbone", agent_step + backbone_step, agent_steps + backbone_steps)


def _random_options(network: RuntimePrunedNetwork, count: int) -> Tensor:
    return torch.randint(1, network.groups + 1, (count, len(network.decisions)))


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor, phase: str, step: int) -> None:
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss.item()} in phase {phase!r}, step {step}; "
            "lower the learning rate, and look for values in the data that are not finite"
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _calibration(backbone: nn.Module, network: RuntimePrunedNetwork, data: ImageData) -> Calibration:
    images, labels = data.test_images, data.test_labels

    def full(batch: Tensor) -> Tensor:
        return network.run(batch, network.full_options(len(batch)))

    return Calibration(
        data=f"{data.name}:test",
        samples=len(labels),
        backbone_accuracy=accuracy(backbone, images, labels),
        full_accuracy=accuracy(full, images, labels),
        points=(evaluate(network, images, labels),),
    )
