"""What a user could have instead of the agent, on the same images: accuracy over MACs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rnp_deploy.datasets import ImageData, spread_rows
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.progress import Progress, no_progress
from rnp_deploy.training import phases, processes
from rnp_deploy.training.algorithm import RunSettings, TrainingResult
from rnp_deploy.training.config import TrainingConfig
from rnp_deploy.training.evaluation import (
    Outcome,
    agent_policy,
    fixed_policy,
    mean_macs_share,
    outcomes,
    point_of,
)
from rnp_deploy.training.minibatches import epoch_of, minibatches

__all__ = ["AGENT", "DEALT", "FIXED", "NARROW", "RANDOM", "BaselinePoint", "compare", "random_options_at"]

AGENT = "agent"
FIXED = "fixed option"
RANDOM = "random decisions"
DEALT = "agent's decisions, dealt to other images"
NARROW = "narrow network"

_DEALS = 8
_BISECTIONS = 30
_STEEPEST = 12.0


@dataclass(frozen=True)
class BaselinePoint:
    """One point of the comparison.

    Attributes:
        method: One of the names above.
        setting: The penalty, or the option held.
        macs_share: Mean backbone MACs ÷ the full network's.
        accuracy: On held-out images.
    """

    method: str
    setting: float
    macs_share: float
    accuracy: float


def compare(
    result: TrainingResult,
    backbone: nn.Module,
    data: ImageData,
    config: TrainingConfig,
    run: RunSettings | None = None,
    progress: Progress = no_progress,
) -> tuple[BaselinePoint, ...]:
    """Hold a trained network against simpler ways to spend as few MACs.

    Random decisions are held to the mean MACs of the agent at each calibrated penalty; so are the
    agent's own decisions, dealt to other images, which keep everything of the agent but that it
    looks at the image. Narrow networks have the widths of one option everywhere (the first
    convolution whole, like the agent's; at the last option they are as wide as the network) and
    are trained from ``backbone``'s first weights for as many minibatches as its backbone was.

    Args:
        result: Of :func:`rnp_deploy.training.train`.
        backbone: As given to it, untrained.
        data: As given to it; judged on its test split.
        config: As given to it.
        run: Where; the state of narrow networks is not kept.
        progress: Told of every minibatch of the narrow networks.

    Raises:
        InputError: An image cannot be read.
        TrainingError: The loss of a narrow network is no longer finite.
    """
    run = run or RunSettings()
    device = processes.torch_device(run.device)
    network = result.network.to(device)
    rows = spread_rows(data.test, config.calibration_images)
    reading = run.reading(config.batch_size)
    uniform = [_uniform(network, j) for j in range(1, network.groups + 1)]
    penalties = [point.penalty for point in result.calibration.points]
    chosen = outcomes(
        network,
        data.test,
        [*(agent_policy(network, p) for p in penalties), *(fixed_policy(network, o) for o in uniform)],
        rows,
        *reading,
    )
    points = [_point(network, AGENT, p, o) for p, o in zip(penalties, chosen, strict=False)]
    points += [_point(network, FIXED, j, o) for j, o in enumerate(chosen[len(penalties) :], start=1)]
    generator = torch.Generator().manual_seed(config.seed)
    deals: list[Tensor] = []
    for outcome, point in zip(chosen, points[: len(penalties)], strict=False):
        deals += [random_options_at(network, len(rows), point.macs_share, generator) for _ in range(_DEALS)]
        deals += [outcome.options[torch.randperm(len(rows), generator=generator)] for _ in range(_DEALS)]
    policies = [fixed_policy(network, options) for options in deals]
    done = iter(outcomes(network, data.test, policies, rows, *reading))
    for penalty in penalties:
        for method in (RANDOM, DEALT):
            points.append(_point(network, method, penalty, *itertools.islice(done, _DEALS)))
    for j, options in enumerate(uniform, start=1):
        narrow = _narrow_network(backbone, options, data, config, run, progress)
        (outcome,) = outcomes(narrow, data.test, [fixed_policy(narrow, options)], rows, *reading)
        points.append(_point(narrow, NARROW, j, outcome))
    return tuple(points)


def random_options_at(
    network: RuntimePrunedNetwork, samples: int, macs_share: float, generator: torch.Generator
) -> Tensor:
    """Options ``[N, T]``, drawn one by one without looking at anything, of a given mean cost.

    Option j of K is drawn with a probability proportional to exp(λ·4j/K); λ is found by bisection.

    Args:
        network: Says what options cost.
        samples: N.
        macs_share: Mean MACs ÷ the full network's; out of reach, the nearest is taken.
        generator: Of the draws.
    """
    u = torch.rand(samples, len(network.decisions), generator=generator, dtype=torch.float64)
    low, high = -_STEEPEST, _STEEPEST
    options = torch.ones(u.shape, dtype=torch.int64)
    for _ in range(_BISECTIONS):
        slope = (low + high) / 2
        for t, k in enumerate(network.option_counts):
            shares = torch.softmax(slope * torch.arange(1, k + 1, dtype=torch.float64) / k * 4, dim=0)
            options[:, t] = 1 + torch.searchsorted(shares.cumsum(0)[:-1].contiguous(), u[:, t].contiguous())
        if mean_macs_share(network, options) > macs_share:
            high = slope
        else:
            low = slope
    return options


def _narrow_network(
    backbone: nn.Module,
    options: Tensor,
    data: ImageData,
    config: TrainingConfig,
    run: RunSettings,
    progress: Progress,
) -> RuntimePrunedNetwork:
    """A network trained with one path alone; what the path leaves out gets no gradient and has no say."""
    device = processes.torch_device(run.device)
    example = torch.from_numpy(data.train.read(spread_rows(data.train, 1))[0])
    epoch = epoch_of(data.train, config.batch_size)
    learning = (phases.BACKBONE, phases.RANDOM, phases.TUNING)
    steps = sum(phase.steps for phase in phases.schedule(config, epoch) if phase.name in learning)
    with processes.own_random_state(device):
        torch.manual_seed(config.seed)
        network = RuntimePrunedNetwork.from_settings(backbone, example, config.pruning).to(device).train()
        name = f"narrow network {int(options[0])}"
        descent = phases.Descent(name, network.backbone.parameters(), config.backbone_rate, steps)
        batches = minibatches(
            data.train, config.batch_size, config.seed,
            rank=processes.rank(), ranks=processes.count(), workers=run.workers,
        )  # fmt: skip
        for done in range(steps):
            images, labels = (x.to(device) for x in next(batches))
            taken = options.to(device).expand(len(images), -1)
            descent.step(phases.options_step(network, images, labels, taken, config).loss, done)
            progress(name, done + 1, steps)
    return network


def _uniform(network: RuntimePrunedNetwork, option: int) -> Tensor:
    return torch.tensor([min(option, k) for k in network.option_counts])


def _point(network: RuntimePrunedNetwork, method: str, setting: float, *deals: Outcome) -> BaselinePoint:
    measured = [point_of(network, outcome, float(setting)) for outcome in deals]
    return BaselinePoint(
        method=method,
        setting=float(setting),
        macs_share=sum(point.macs_share for point in measured) / len(deals),
        accuracy=sum(point.accuracy for point in measured) / len(deals),
    )
