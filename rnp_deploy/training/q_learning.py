"""Runtime pruning as a Markov decision process, and the Q-learning that solves it (paper, section 3.2).

A state is what the agent knows before a convolution: the pooled features that enter it and
the recurrent state of the decisions before. An action is an option. N samples, T decisions,
K options.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rnp_deploy.network import RuntimePrunedNetwork

__all__ = ["Rollout", "epsilon_at", "explore", "q_loss", "rewards", "roll_out"]


class Rollout(NamedTuple):
    """One episode per sample.

    ``q_values`` ``[N, T, K]`` with gradients to the agent; ``options`` ``[N, T]`` taken, 1..K;
    ``outputs`` ``[N, ...]`` of the backbone, without gradients.
    """

    q_values: Tensor
    options: Tensor
    outputs: Tensor


def epsilon_at(step: int, steps: int, first: float = 1.0, last: float = 0.1) -> float:
    """The exploration rate of one of ``steps`` training steps: linear from ``first`` to ``last``."""
    return first + (last - first) * step / max(steps - 1, 1)


def explore(greedy: Tensor, groups: int, epsilon: float) -> Tensor:
    """Replace each option ``[N]``, with probability ``epsilon``, by a uniformly random one."""
    random = torch.randint_like(greedy, 1, groups + 1)
    return torch.where(torch.rand(greedy.shape, device=greedy.device) < epsilon, random, greedy)


def roll_out(network: RuntimePrunedNetwork, images: Tensor, epsilon: float) -> Rollout:
    """Let the ε-greedy agent take all decisions of each image; the backbone is held fixed.

    Args:
        network: In eval mode, so that an image's features do not depend on its batch.
        images: ``[N, C, H, W]``.
        epsilon: Share of decisions taken at random; 0 is the greedy policy.
    """
    state = network.agent.initial_state(images)
    # The price trained with: the Q-values are then those of the reward, not shifted.
    penalty = images.new_full((images.shape[0],), network.agent.penalty)
    q_values = []

    def choose(decision: int, features: Tensor) -> Tensor:
        nonlocal state
        with torch.enable_grad():
            q, greedy, state = network.agent(decision, features, state, penalty)
            # Options that a decision does not have are worth nothing to the next maximum.
            q_values.append(F.pad(q, (0, network.groups - q.shape[1]), value=-torch.inf))
        return explore(greedy, q.shape[1], epsilon)

    with torch.no_grad():
        outputs, options = network.route(images, choose)
    return Rollout(torch.stack(q_values, dim=1), options, outputs)


def rewards(options: Tensor, losses: Tensor, penalty: float, alpha: float) -> Tensor:
    """The reward of every decision (paper, section 3.2).

    Option i earns (i-1)·p with p = -penalty; the last decision earns -α·L_cls besides, of
    its own sample.

    Args:
        options: ``[N, T]``, 1..K.
        losses: ``[N]``, the classification loss L_cls of each sample.
        penalty: The price of one more group, -p.
        alpha: α, what a unit of loss costs.

    Returns:
        ``[N, T]``.
    """
    r = -penalty * (options - 1).to(losses.dtype)
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
