"""Runtime pruning as a Markov decision process, and the Q-learning that solves it (paper, section 3.2).

A state is what the agent knows before a convolution: the pooled features that enter it, the
recurrent state of the decisions before, and the price of a group. An action is an option.
N samples, T decisions, K options.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rnp_deploy.network import RuntimePrunedNetwork

__all__ = ["Draws", "Rollout", "draw", "epsilon_at", "explore", "q_loss", "rewards", "roll_out"]


class Draws(NamedTuple):
    """What is random about the decisions of a minibatch.

    ``options`` ``[N, T]``, uniform over each decision's; ``coins`` ``[N, T]`` in 0..1, below ε where
    the random option is taken; ``penalties`` ``[N]``, the price of one more group.
    """

    options: Tensor
    coins: Tensor
    penalties: Tensor


class Rollout(NamedTuple):
    """One episode per sample.

    ``q_values`` ``[N, T, K]`` with gradients to the agent; ``options`` ``[N, T]`` taken, 1..K;
    ``outputs`` ``[N, ...]`` of the backbone, without gradients.
    """

    q_values: Tensor
    options: Tensor
    outputs: Tensor


def draw(network: RuntimePrunedNetwork, samples: int, generator: torch.Generator | None = None) -> Draws:
    """Draw for a whole minibatch, on the CPU.

    Prices of a conditioned agent are uniform on its :class:`rnp_deploy.network.agent.PenaltyScale`,
    those of a fixed one its own.
    """
    options = network.random_options(samples, generator)
    coins = torch.rand(options.shape, generator=generator)
    positions = torch.rand(samples, generator=generator)
    scale = network.agent.scale
    fixed = torch.full((samples,), network.agent.penalty)
    return Draws(options, coins, fixed if scale is None else scale.penalty(positions))


def epsilon_at(step: int, steps: int, first: float = 1.0, last: float = 0.1) -> float:
    """The exploration rate of one of ``steps`` training steps: linear from ``first`` to ``last``.

    ε-greedy from 1.0 to 0.1 (as reproductions of the paper quote it).
    """
    return first + (last - first) * step / max(steps - 1, 1)


def explore(greedy: Tensor, random: Tensor, coins: Tensor, epsilon: float) -> Tensor:
    """Replace options ``greedy`` ``[N]`` by ``random`` ones where ``coins`` ``[N]`` lie below ε."""
    return torch.where(coins < epsilon, random, greedy)


def roll_out(network: RuntimePrunedNetwork, images: Tensor, draws: Draws, epsilon: float) -> Rollout:
    """Let the ε-greedy agent take all decisions of each image; the backbone is held fixed.

    The recurrent state is carried from the first decision to the last (paper, section 3.2).

    Args:
        network: In eval mode, so that an image's features do not depend on its batch.
        images: ``[N, C, H, W]``.
        draws: Of these images, on their device.
        epsilon: Share of decisions taken at random; 0 is the greedy policy.
    """
    state = network.agent.initial_state(images)
    q_values = []

    def choose(decision: int, features: Tensor) -> Tensor:
        nonlocal state
        with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
            q, greedy, state = network.agent(decision, features.to(images.dtype), state, draws.penalties)
            # Options that a decision does not have are worth nothing to the next maximum.
            q_values.append(F.pad(q, (0, network.groups - q.shape[1]), value=-torch.inf))
        return explore(greedy, draws.options[:, decision], draws.coins[:, decision], epsilon)

    with torch.no_grad():
        outputs, options = network.route(images, choose)
    return Rollout(torch.stack(q_values, dim=1), options, outputs)


def rewards(options: Tensor, losses: Tensor, penalties: Tensor | float, alpha: float) -> Tensor:
    """The reward of every decision (paper, section 3.2).

    Option i earns (i-1)·p with p = -penalty; the last decision earns -α·L_cls besides, of
    its own sample.

    Args:
        options: ``[N, T]``, 1..K.
        losses: ``[N]``, the classification loss L_cls of each sample.
        penalties: The price of one more group, -p; ``[N]`` or one for all.
        alpha: α, what a unit of loss costs.

    Returns:
        ``[N, T]``.
    """
    price = torch.as_tensor(penalties, dtype=losses.dtype, device=losses.device).reshape(-1, 1)
    r = -price * (options - 1)
    r[:, -1] -= alpha * losses
    return r


def q_loss(q_values: Tensor, options: Tensor, rewards: Tensor, gamma: float = 1.0) -> Tensor:
    """The Q-learning loss E[(r + γ·max_a' Q(s',a') - Q(s,a))²] (paper, section 3.2).

    The target is a constant, and after the last decision there is no s'.

    Args:
        q_values: ``[N, T, K]``.
        options: ``[N, T]`` taken, 1..K.
        rewards: ``[N, T]``.
        gamma: γ; 1 in the released code.

    Returns:
        A scalar, the mean over samples and decisions.
    """
    q = q_values.gather(2, (options - 1)[:, :, None]).squeeze(2)  # [N, T]
    following = q_values.detach().amax(dim=2)[:, 1:]  # [N, T-1]
    target = rewards.clone()
    target[:, :-1] += gamma * following
    return (target - q).square().mean()
