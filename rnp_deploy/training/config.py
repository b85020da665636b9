"""How to train, checked when made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from rnp_deploy.errors import InputError
from rnp_deploy.pruning_settings import PENALTY_RANGE, PruningSettings

__all__ = ["TrainingConfig"]

_COUNTS = {"batch_size": 2, "backbone_epochs": 0, "random_epochs": 1, "rounds": 1, "agent_minibatches": 1,
           "backbone_minibatches": 0, "state_size": 1, "calibration_images": 1, "seed": 0}  # fmt: skip
_NO_NUMBERS = ("pruning", "penalty_range", "relative_loss", "mixed_precision")
_SHARES = ("random_share", "gamma", "label_smoothing", "first_epsilon", "last_epsilon")


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; what decides the result. The defaults fit the digits.

    Attributes:
        seed: Of everything random but the backbone's first weights, which the caller draws.
        pruning: Groups, widths and decisions.
        penalty: The price of one more group, -p (the paper's is 0.1), where the user of the
            network names none.
        penalty_range: Prices the agent is trained for, drawn for each sample; each decision knows
            the price. None: the paper's agent, trained for ``penalty`` alone.
        gamma: γ of the Q-learning loss.
        first_epsilon: Share of random decisions in the first step of Q-learning.
        last_epsilon: The same in the last; it falls linearly between.
        state_size: D, of the agent.
        batch_size: Samples of a minibatch, in every phase, over all processes together.
        backbone_epochs: Passes over the train split for the plain backbone; 0 where it is trained.
        random_epochs: Passes under random options.
        rounds: Alternations of agent and backbone.
        agent_minibatches: N1, Q-learning minibatches of a round.
        backbone_minibatches: N2, backbone minibatches of a round.
        backbone_rate: Adam's first learning rate for the backbone, alone and under random options.
        tuning_rate: The same under the agent.
        agent_rate: The same for Q-learning.
        random_share: Share of samples that the backbone meets under random options while it is
            tuned under the agent.
        label_smoothing: Of every cross entropy, L_cls included; the paper's is 0. Where the network
            fits every image there is no loss left to decide by, but that of a few outliers.
        relative_loss: Reward the agent by -α times what L_cls exceeds the full network's on the same
            sample, not by -α·L_cls as the paper does. What is subtracted is the same whatever the agent
            decides, so that the best decisions stay the same; most of the variance goes.
        mixed_precision: Compute the backbone in bfloat16 where torch deems it safe; weights,
            agent and losses stay float32.
        calibration_images: At most so many held-out images make the calibration, evenly taken.
    """

    seed: int = 0
    pruning: PruningSettings = field(default_factory=PruningSettings)
    penalty: float = 0.05
    penalty_range: tuple[float, float] | None = PENALTY_RANGE
    gamma: float = 1.0
    first_epsilon: float = 1.0
    last_epsilon: float = 0.1
    state_size: int = 32
    batch_size: int = 128
    backbone_epochs: int = 30
    random_epochs: int = 20
    rounds: int = 4
    agent_minibatches: int = 500
    backbone_minibatches: int = 60
    backbone_rate: float = 4e-3
    tuning_rate: float = 1e-3
    agent_rate: float = 3e-3
    random_share: float = 0.2
    label_smoothing: float = 0.1
    relative_loss: bool = True
    mixed_precision: bool = False
    calibration_images: int = 10_000

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self) if each.name not in _NO_NUMBERS):
            value, least = getattr(self, name), _COUNTS.get(name, 0)
            kind = int if name in _COUNTS else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise InputError(f"{name} is {value!r}; pass a {'whole ' if kind is int else ''}number")
            above = name.endswith("_rate")
            if not (least <= value < math.inf) or (above and value == 0):
                raise InputError(
                    f"{name} is {value!r}; pass a number {'above' if above else 'of at least'} {least}"
                )
        for name in _SHARES:
            if getattr(self, name) > 1:
                raise InputError(f"{name} is {getattr(self, name)}; pass a number between 0 and 1")
        if self.penalty_range is not None and len(self.penalty_range) != 2:
            raise InputError(f"penalty_range is {self.penalty_range!r}; pass two prices, or None")
        low, high = self.penalty_range or (self.penalty, self.penalty)
        if low < high and not low <= self.penalty <= high:
            raise InputError(
                f"penalty is {self.penalty}, beyond the prices trained for, {low} to {high}; widen penalty_range"
            )
