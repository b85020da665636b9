"""Stages rewritten to take full-width inputs compute what they did before."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import networks
from random_networks import PARTS, RandomCnn
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.full_width_inputs import with_full_width_inputs


def routed(stages, images, options):
    """As ``RuntimePrunedNetwork.route`` does, over these stages."""
    tensors = {"images": images}
    with torch.no_grad():
        for stage in stages:
            inputs = [tensors[tensor.name] for tensor in stage.inputs]
            results = stage.module(*inputs, *(options[:, t] for t in stage.option_decisions))
            for tensor, value in zip(stage.outputs, results, strict=True):
                assert value.shape == (len(images), *tensor.shape), tensor
                tensors[tensor.name] = value
    return tensors["outputs"]


def made(backbone, shape):
    return RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape), min_macs_share=0.0)


def assert_same(network, stages, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, *network.input_shape, generator=generator)
    for options in (
        network.random_options(3, generator),
        network.full_options(3),
        network.full_options(3) * 0 + 1,
    ):
        with torch.no_grad():
            expected = network.run(images, options)
        scale = float(expected.abs().max())
        torch.testing.assert_close(routed(stages, images, options), expected, rtol=0, atol=1e-4 * scale)


@pytest.fixture(scope="module", params=sorted(networks.TINY))
def network(request):
    return made(*networks.make(request.param))


def followed(stage):
    return [tensor for tensor in stage.inputs if tensor.follows is not None]


def test_every_stage_rewritten_computes_the_same_and_asks_for_no_earlier_option(network):
    before = network.stages
    stages = with_full_width_inputs(before, range(len(before)))
    assert_same(network, stages)
    assert len(stages) == len(before)
    for stage in stages:
        assert stage.input_decisions == ()
        assert not followed(stage)
    assert network.stages is before


@pytest.mark.parametrize("remainder", [0, 1])
def test_stages_rewritten_beside_others_that_are_not(network, remainder):
    chosen = [index for index in range(len(network.stages)) if index % 2 == remainder]
    stages = with_full_width_inputs(network.stages, chosen)
    assert_same(network, stages)
    for index, (stage, old) in enumerate(zip(stages, network.stages, strict=True)):
        assert stage.input_decisions == (() if index in chosen else old.input_decisions)


def test_none_chosen_leaves_all_as_they_are(network):
    assert with_full_width_inputs(network.stages, []) == network.stages


def test_a_tensor_two_stages_read_is_given_in_both_forms():
    def forward(m, x):
        y = F.relu(m.c(x))
        return m.d(y) + m.g(F.relu(m.e(x))) + m.f(y)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            for name in "cdefg":
                self.add_module(name, nn.Conv2d(8, 8, 1))

        def forward(self, x):
            return forward(self, self.stem(x))

    network = made(Net().eval(), (3, 6, 6))
    assert_same(network, with_full_width_inputs(network.stages, range(len(network.stages))))


class Crossing(nn.Module):
    """What ``c`` makes is read behind the decision of ``e``, through ``between``."""

    def __init__(self, between):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        for name in "cdef":
            self.add_module(name, nn.Conv2d(8, 8, 1))
        self.between = between

    def forward(self, x):
        x = self.stem(x)
        y = self.c(x)
        z = F.relu(self.e(x))
        return self.d(self.between(y)) + self.f(z)


@pytest.mark.parametrize(
    "between",
    [torch.sigmoid, nn.Sigmoid(), nn.Hardsigmoid(), lambda y: y + 1, nn.BatchNorm2d(8), lambda y: y * y],
    ids=["sigmoid", "Sigmoid", "Hardsigmoid", "plus one", "norm", "square"],
)
def test_a_stage_that_turns_zeros_into_other_values_is_left_as_it_is(between):
    network = made(networks.randomised(Crossing(between)), (3, 6, 6))
    (index,) = [stage.index for stage in network.stages if stage.input_decisions]
    stages = with_full_width_inputs(network.stages, range(len(network.stages)))
    assert stages[index].input_decisions == network.stages[index].input_decisions
    assert stages[index].inputs == network.stages[index].inputs
    assert_same(network, stages)


@pytest.mark.parametrize(
    "between",
    [F.relu, nn.SiLU(), nn.Hardswish(), torch.tanh, nn.Identity(), nn.MaxPool2d(1)],
    ids=lambda between: getattr(between, "__name__", type(between).__name__),
)
def test_a_stage_that_keeps_zeros_is_rewritten(between):
    network = made(Crossing(between).eval(), (3, 6, 6))
    stages = with_full_width_inputs(network.stages, range(len(network.stages)))
    assert not any(stage.input_decisions for stage in stages)
    assert_same(network, stages)


@given(
    st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=3),
    st.sets(st.integers(0, 12)),
    st.integers(0, 99),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_random_networks_compute_the_same_whatever_is_chosen(names, chosen, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = made(networks.randomised(RandomCnn(names, 8, False)), (3, 8, 8))
    chosen = [index for index in chosen if index < len(network.stages)]
    stages = with_full_width_inputs(network.stages, chosen)
    assert_same(network, stages, seed)
