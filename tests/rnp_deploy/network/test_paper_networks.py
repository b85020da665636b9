"""The paper's networks by our counter of multiplications (figures: paper, sections 4.1 and 4.2)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rnp_deploy.network import RuntimePrunedNetwork

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def convolutions(plan, kernel=3):
    layers, channels = [], 3
    for width in plan:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU()]
            channels = width
    return layers


def test_lfw_t_has_4950_thousand_multiplications():
    """Convolutions 3→32→32→64 on 32x32, fully connected 1024→512→3."""
    head = [nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 3)]
    backbone = nn.Sequential(*convolutions((32, "M", 32, "M", 64, "M")), *head)
    network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, 3, 32, 32))
    full = int(network.macs(network.full_options(1)))
    assert full == 4_949_504
    assert round(full / 1e6, 3) == 4.950


def test_the_convolutions_of_vgg16_have_15_35_g_and_their_cheapest_path_1_387():
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2)]
    backbone = nn.Sequential(*convolutions(VGG16), *head)
    network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, 3, 224, 224))
    assert len(network.decisions) == 12  # the first of thirteen is never pruned
    paths = torch.stack([network.full_options(1)[0], torch.ones(12, dtype=torch.int64)])
    full, cheapest = network.macs(paths).tolist()
    assert full - 512 * 2 == pytest.approx(15.35e9, abs=0.005e9)
    assert cheapest - 128 * 2 == pytest.approx(1.387e9, abs=0.0005e9)
    assert full / cheapest == pytest.approx(11.06, abs=0.01)  # the ceiling of the speed-up
