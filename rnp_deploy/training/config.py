"""How to train, checked when made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

from rnp_deploy.errors import InputError
from rnp_deploy.pruning_settings import PruningSettings

__all__ = ["TrainingConfig"]

_COUNTS = {"batch_size": 2, "backbone_epochs": 1, "random_epochs": 1, "rounds": 1,
           "agent_minibatches": 1, "backbone_minibatches": 1}  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; the defaults fit the digits.

    Attributes:
        seed: Of everything random but the backbone's first weights, which the caller draws.
        pruning: Groups, widths and decisions.
        penalty: The price of one more group, -p. The paper's is 0.1; 0.05 was chosen on a
            part of the train split.
        gamma: γ of the Q-learning loss.
        batch_size: Samples of a minibatch, in every phase.
        backbone_epochs: Passes over the train split for the plain backbone.
        random_epochs: Passes under random options.
        rounds: Alternations of agent and backbone.
        agent_minibatches: N1, Q-learning minibatches of a round.
        backbone_minibatches: N2, backbone minibatches of a round.
        backbone_rate: Adam's first learning rate for the backbone, alone and under random options.
        tuning_rate: The same under the agent.
        agent_rate: The same for Q-learning.
        random_share: Share, 0..1, of samples that the backbone meets under random options
            while it is tuned under the agent.
        distortion: Size of the random affine maps the images meet; see
            :func:`rnp_deploy.training.minibatches.distort_images`.
        label_smoothing: Of every cross entropy, L_cls included. A loss that is zero but for a
            few samples drowns the price of a group in its variance.
    """

    seed: int = 0
    pruning: PruningSettings = field(default_factory=PruningSettings)
    penalty: float = 0.05
    gamma: float = 1.0
    batch_size: int = 128
    backbone_epochs: int = 15
    random_epochs: int = 15
    rounds: int = 10
    agent_minibatches: int = 200
    backbone_minibatches: int = 20
    backbone_rate: float = 4e-3
    tuning_rate: float = 1e-3
    agent_rate: float = 3e-3
    random_share: float = 0.5
    distortion: float = 0.2
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self) if each.name != "pruning"):
            value, least = getattr(self, name), _COUNTS.get(name, 0)
            if isinstance(value, str) or (name in (*_COUNTS, "seed") and not isinstance(value, int)):
                raise InputError(f"{name} is {value!r}; pass a whole number")
            if not (least <= value < math.inf) or (name.endswith("_rate") and value == 0):
                raise InputError(
                    f"{name} is {value!r}; pass a number {'above' if not least else 'of at least'} {least}"
                )
        for name in ("random_share", "gamma", "label_smoothing"):
            if getattr(self, name) > 1:
                raise InputError(f"{name} is {getattr(self, name)}; pass a number between 0 and 1")
