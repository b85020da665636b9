"""The backbones a checkpoint can name."""

from typing import Any

import pytest
import torch

from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.training.backbones import BACKBONES, digits_cnn


def test_digits_cnn_prunes_all_convolutions_but_the_first() -> None:
    backbone = BACKBONES["digits-cnn"](classes=7, widths="4,8,12,16")
    network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, 1, 16, 16))
    assert [decision.widths[-1] for decision in network.decisions] == [8, 12, 16]
    assert network(torch.zeros(2, 1, 16, 16))[0].shape == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": 1}, "classes=1"),
        ({"classes": "10"}, "classes='10'"),
        ({"widths": "32,32,64"}, "four positive integers"),
        ({"widths": "32,32,64,0"}, "'32,32,64,0'"),
        ({"widths": "32,32,64,wide"}, "four positive integers"),
        ({"widths": 32}, "widths=32"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        digits_cnn(**arguments)
