"""The decision network: per-decision encoders, one shared recurrent cell, a linear decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Agent", "AgentStep", "StepOutput"]


_UNTRAINED_WEIGHT = 0.01
_UNTRAINED_STEP = 0.05


class StepOutput(NamedTuple):
    """What one agent step gives: Q-values ``[N, K]``, option ``[N]`` int64 in 1..K, state ``[N, D]``."""

    q_values: Tensor
    option: Tensor
    state: Tensor


class AgentStep(nn.Module):
    """One decision: encode the pooled features, advance the shared state, value the options.

    Q-values come from a linear decoder: a tanh-bounded state could not represent the returns.
    """

    def __init__(
        self, encoder: nn.Module, cell: nn.GRUCell, decoder: nn.Linear, penalty: float, options: int
    ) -> None:
        super().__init__()
        self.options = options
        self.encoder = encoder
        self.cell = cell
        self.decoder = decoder
        self.penalty = penalty

    def forward(self, features: Tensor, state: Tensor, penalty: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the step.

        Args:
            features: ``[N, C_in]`` pooled features, zero where channels are pruned.
            state: ``[N, D]``; zeros before the first decision.
            penalty: ``[N]`` price of one more group. Q-values of option i are lowered by
                (i-1) times what it exceeds the price trained with: exact for the
                immediate reward (i-1)·p, not for what later decisions would do.

        Returns:
            The fields of :class:`StepOutput`. Of equal Q-values the cheapest option wins.
        """
        state = self.cell(self.encoder(features), state)
        q_values = self.decoder(state)[:, : self.options]
        steps = torch.arange(q_values.shape[1], device=q_values.device, dtype=q_values.dtype)
        q_values = q_values - (penalty - self.penalty)[:, None] * steps
        return q_values, torch.argmax(q_values, dim=1) + 1, state


class Agent(nn.Module):
    """All agent steps of a network (paper, section 3.2).

    Args:
        feature_channels: C_in of each decision.
        option_counts: K of each decision; Q-values beyond are neither given nor trained.
        embedding_size: Length of every encoder's output.
        state_size: D.
        penalty: The price of one more group it is trained with, the paper's -p.

    Attributes:
        trained: Whether training has seen it; until then it takes all groups everywhere.
    """

    def __init__(
        self,
        feature_channels: Sequence[int],
        option_counts: Sequence[int],
        embedding_size: int = 32,
        state_size: int = 32,
        penalty: float = 0.1,
    ) -> None:
        super().__init__()
        self.state_size = state_size
        self.embedding_size = embedding_size
        self.penalty = penalty
        self.trained = False
        self.encoders = nn.ModuleList(nn.Linear(c, embedding_size) for c in feature_channels)
        self.cell = nn.GRUCell(embedding_size, state_size)
        self.decoder = nn.Linear(state_size, max(option_counts))
        self.option_counts = tuple(option_counts)
        # Untrained, the agent is to change nothing: all groups are worth a little more.
        with torch.no_grad():
            self.decoder.weight.mul_(_UNTRAINED_WEIGHT)
            self.decoder.bias.copy_(_UNTRAINED_STEP * torch.arange(max(option_counts)))

    def initial_state(self, features: Tensor) -> Tensor:
        """Zeros ``[N, D]`` on the device and in the dtype of ``features``."""
        return features.new_zeros(features.shape[0], self.state_size)

    def step(self, decision: int) -> AgentStep:
        """The module of one decision; it shares this agent's parameters."""
        encoder, options = self.encoders[decision], self.option_counts[decision]
        return AgentStep(encoder, self.cell, self.decoder, self.penalty, options)

    def forward(self, decision: int, features: Tensor, state: Tensor, penalty: Tensor) -> StepOutput:
        """Take one decision; see :meth:`AgentStep.forward`."""
        return StepOutput(*self.step(decision)(features, state, penalty))

    def macs(self, decision: int) -> int:
        """Multiply-accumulates of one decision for one sample: encoder, three gates, decoder."""
        weights = [p for p in self.step(decision).parameters() if p.ndim == 2]
        return sum(weight.numel() for weight in weights)
