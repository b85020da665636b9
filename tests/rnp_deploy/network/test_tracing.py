"""Tracing: what is refused, and what becomes of sizes and flattening."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from rnp_deploy.errors import InputError, NothingPrunableError, TracingError
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.tracing import trace_backbone


class Body(nn.Module):
    """Two convolutions and a head; ``forward`` is given."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.fc = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Linear(8, 4),
        )
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def plain(m, x):
    return m.fc(m.b(m.a(x)).mean((2, 3)))


def branching(m, x):
    return plain(m, x) if x.sum() > 0 else x


def batch_of_one(m, x):
    return plain(m, x).view(1, 4)


def across_the_batch(m, x):
    return plain(m, x - x.mean(0, keepdim=True))


def tuple_output(m, x):
    return plain(m, x), x


def batch_lost(m, x):
    return plain(m, x).flatten()


def batch_size_across_a_decision(m, x):
    size = x.size(0)
    return m.fc(m.b(m.a(x)).mean((2, 3))) * size


IMAGE = torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (branching, ["trace Body", "control flow"]),
        (batch_of_one, ["cannot run", "any batch size"]),
        (across_the_batch, ["other outputs", "per sample"]),
        (tuple_output, ["tuple", "one tensor"]),
        (batch_lost, ["batch"]),
        (batch_size_across_a_decision, ["other outputs"]),
        (lambda m, x: m.b(x), ["cannot run", "(2, 3, 8, 8)"]),
    ],
)
def test_a_backbone_that_cannot_be_pruned_per_sample_is_refused(forward, words):
    with pytest.raises(TracingError) as caught:
        RuntimePrunedNetwork.from_backbone(Body(forward), IMAGE)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.zeros(3, 8, 8), "(3, 8, 8)"),
        (torch.zeros(1, 3, 8), "(1, 3, 8)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.complex64), "complex64"),
        (torch.zeros(0, 3, 8, 8), "empty"),
    ],
)
def test_a_bad_example_is_refused(example, words):
    with pytest.raises(InputError, match="example_input") as caught:
        RuntimePrunedNetwork.from_backbone(Body(plain), example)
    assert words in str(caught.value)


@pytest.mark.parametrize("groups", [1, 0, -4, 2.0, True, "4"])
def test_bad_groups_are_refused(groups):
    with pytest.raises(InputError, match="groups"):
        RuntimePrunedNetwork.from_backbone(Body(plain), IMAGE, groups)


def test_nothing_prunable_says_why_for_every_conv():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 2))
    with pytest.raises(NothingPrunableError, match=r"0: the first .* 1: 6 channels do not divide"):
        RuntimePrunedNetwork.from_backbone(network, IMAGE)


def test_two_inputs_are_refused():
    class Two(Body):
        def forward(self, x, y):
            return plain(self, x) + plain(self, y)

    with pytest.raises(TracingError):
        RuntimePrunedNetwork.from_backbone(Two(plain), IMAGE)


@pytest.mark.parametrize("name", networks.TINY)
def test_the_backbone_is_left_untouched(name):
    backbone, shape = networks.make(name)
    backbone.train()
    before = copy.deepcopy(backbone.state_dict())
    inplace = [getattr(module, "inplace", None) for module in backbone.modules()]
    network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert backbone.training
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert inplace == [getattr(module, "inplace", None) for module in backbone.modules()]


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: torch.flatten(x, 1),
        lambda x: x.flatten(start_dim=1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(-1, 8 * 4),
        lambda x: x.reshape(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3]),
        lambda x: torch.reshape(x, (x.shape[0], -1)),
    ],
)
def test_every_way_to_flatten_becomes_one(flatten):
    class Flattening(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(32, 4)

        def forward(self, x):
            return self.fc(flatten(F.max_pool2d(self.b(self.a(x)), 2)))

    traced = trace_backbone(Flattening(), IMAGE).graph_module
    targets = [node.target for node in traced.graph.nodes]
    assert targets.count(torch.flatten) == 1
    assert not {"size", "view", "reshape", getattr} & set(targets)
