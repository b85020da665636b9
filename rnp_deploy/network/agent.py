"""The decision network: per-decision encoders, one shared recurrent cell, a linear decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rnp_deploy.price_scale import PriceScale
from rnp_deploy.pruning_settings import PENALTY_RANGE

__all__ = ["Agent", "AgentStep", "PenaltyScale", "StepOutput"]


_UNTRAINED_WEIGHT = 0.01
_UNTRAINED_STEP = 0.05


class StepOutput(NamedTuple):
    """What one agent step gives: Q-values ``[N, K]``, option ``[N]`` int64 in 1..K, state ``[N, D]``."""

    q_values: Tensor
    option: Tensor
    state: Tensor


class PenaltyScale:
    """:class:`rnp_deploy.price_scale.PriceScale` for tensors, by which agents see prices."""

    def __init__(self, low: float, high: float) -> None:
        self.numbers = PriceScale(low, high)

    def position(self, penalty: Tensor) -> Tensor:
        """Prices → 0..1, of the same shape; those beyond the range count as its ends."""
        scale = self.numbers
        inside = penalty.clamp(scale.low, scale.high)
        return (torch.asinh(inside / scale.unit) - scale.start) / scale.length

    def penalty(self, position: Tensor) -> Tensor:
        """The inverse of :meth:`position`: 0..1 → prices."""
        scale = self.numbers
        return scale.unit * torch.sinh(scale.start + scale.length * position)


class AgentStep(nn.Module):
    """One decision: encode the pooled features, advance the shared state, value the options.

    Q-values come from a linear decoder: a tanh-bounded state could not represent the returns.
    """

    def __init__(self, agent: Agent, decision: int) -> None:
        super().__init__()
        self.options = agent.option_counts[decision]
        self.encoder = agent.encoders[decision]
        self.cell = agent.cell
        self.decoder = agent.decoder
        self.scale = agent.scale
        self.included_penalty = agent.penalty if agent.scale is None else 0.0

    def forward(self, features: Tensor, state: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the step.

        The price (i-1)·penalty of option i itself is taken off its Q-value here. A conditioned
        agent learns the rest, as a function of the penalty. A fixed one has learnt it for
        ``agent.penalty``: another penalty shifts the Q-values by (i-1) times the difference,
        exact for the immediate reward (i-1)·p, not for what later decisions would do.

        Args:
            features: ``[N, C_in]`` pooled features, zero where channels are pruned.
            state: ``[N, D]``; zeros before the first decision.
            penalty: ``[N]`` price of one more group.

        Returns:
            The fields of :class:`StepOutput`. Of equal Q-values the cheapest option wins.
        """
        if self.scale is not None:
            features = torch.cat([features, self.scale.position(penalty)[:, None]], dim=1)
        state = self.cell(self.encoder(features), state)
        q_values = self.decoder(state)[:, : self.options]
        steps = torch.arange(q_values.shape[1], device=q_values.device, dtype=q_values.dtype)
        q_values = q_values - (penalty - self.included_penalty)[:, None] * steps
        return q_values, torch.argmax(q_values, dim=1) + 1, state


class Agent(nn.Module):
    """All agent steps of a network (paper, section 3.2).

    Args:
        feature_channels: C_in of each decision.
        option_counts: K of each decision; Q-values beyond are neither given nor trained.
        state_size: D, and the length of every encoder's output.
        penalty: The price of one more group, the paper's -p: the one taken where the caller
            names none, and for a fixed agent the one it is trained with.
        penalty_range: Prices that the agent is trained for, each decision knowing the price;
            None is the paper's agent, fixed to ``penalty``.

    Attributes:
        scale: How the encoders see the price; None for a fixed agent.
        trained: Whether training has seen it; until then it takes all groups everywhere.

    Raises:
        InputError: The range is none.
    """

    def __init__(
        self,
        feature_channels: Sequence[int],
        option_counts: Sequence[int],
        state_size: int = 32,
        penalty: float = 0.1,
        penalty_range: tuple[float, float] | None = PENALTY_RANGE,
    ) -> None:
        super().__init__()
        self.state_size = state_size
        self.penalty = penalty
        self.penalty_range = penalty_range
        self.scale = None if penalty_range is None else PenaltyScale(*penalty_range)
        self.trained = False
        seen = 0 if penalty_range is None else 1
        self.encoders = nn.ModuleList(nn.Linear(c + seen, state_size) for c in feature_channels)
        self.cell = nn.GRUCell(state_size, state_size)
        self.decoder = nn.Linear(state_size, max(option_counts))
        self.option_counts = tuple(option_counts)
        # Untrained, the agent is to change nothing: all groups are worth a little more than they cost.
        worth = _UNTRAINED_STEP + (0.0 if penalty_range is None else penalty)
        with torch.no_grad():
            self.decoder.weight.mul_(_UNTRAINED_WEIGHT)
            self.decoder.bias.copy_(worth * torch.arange(max(option_counts)))

    def initial_state(self, features: Tensor) -> Tensor:
        """Zeros ``[N, D]`` on the device and in the dtype of ``features``."""
        return features.new_zeros(features.shape[0], self.state_size)

    def step(self, decision: int) -> AgentStep:
        """The module of one decision; it shares this agent's parameters."""
        return AgentStep(self, decision)

    def forward(self, decision: int, features: Tensor, state: Tensor, penalty: Tensor) -> StepOutput:
        """Take one decision; see :meth:`AgentStep.forward`."""
        return StepOutput(*self.step(decision)(features, state, penalty))

    def macs(self, decision: int) -> int:
        """Multiply-accumulates of one decision for one sample: encoder, three gates, decoder."""
        weights = [p for p in self.step(decision).parameters() if p.ndim == 2]
        return sum(weight.numel() for weight in weights)
