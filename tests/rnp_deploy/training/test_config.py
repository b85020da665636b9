"""Settings that do not fit are refused when they are made."""

import dataclasses
import math
from typing import Any

import pytest
from pydantic import ValidationError

from rnp_deploy.errors import InputError
from rnp_deploy.pruning_settings import PruningSettings
from rnp_deploy.training import TrainingConfig


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rounds": 0}, "rounds is 0; .*at least 1"),
        ({"batch_size": 1}, "batch_size is 1; .*at least 2"),
        ({"batch_size": 32.0}, "batch_size is 32.0; pass a whole number"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": "0"}, "seed is '0'"),
        ({"random_epochs": 0}, "random_epochs is 0"),
        ({"backbone_epochs": -1}, "backbone_epochs is -1"),
        ({"calibration_images": 0}, "calibration_images is 0"),
        ({"penalty": math.nan}, "penalty is nan"),
        ({"penalty": math.inf}, "penalty is inf"),
        ({"penalty": -0.1}, "penalty is -0.1"),
        ({"penalty": 9.0}, r"penalty is 9.0, beyond the prices trained for, -0.02 to 1.0"),
        ({"agent_rate": 0.0}, "agent_rate is 0.0; .*above 0"),
        ({"tuning_rate": -1.0}, "tuning_rate is -1.0"),
        ({"gamma": 2.0}, "gamma is 2.0; .*between 0 and 1"),
        ({"first_epsilon": 1.1}, "first_epsilon is 1.1"),
        ({"last_epsilon": -0.1}, "last_epsilon is -0.1"),
        ({"random_share": 1.5}, "random_share is 1.5"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainingConfig(**settings)


@pytest.mark.parametrize("groups", [1, 0, 2.0, True, "4"])
def test_bad_groups_are_refused(groups: Any) -> None:
    with pytest.raises(ValidationError, match="groups"):
        TrainingConfig(pruning=PruningSettings(groups=groups))


def test_the_ends_of_what_is_allowed_are_allowed() -> None:
    ends = {"backbone_epochs": 0, "backbone_minibatches": 0, "penalty": 0.0, "gamma": 0.0, "random_share": 1}
    config = TrainingConfig(**ends, batch_size=2)
    assert {name: dataclasses.asdict(config)[name] for name in ends} == ends
