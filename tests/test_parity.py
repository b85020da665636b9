"""Sliced = masked = zeroed by hooks, for any options, for every tiny network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import networks
from reference import hooked_outputs
from rnp_deploy import Controller
from rnp_deploy.network import RuntimePrunedNetwork

TOLERANCE = 1e-4
BATCH = 8
each_network = pytest.mark.parametrize("name", networks.TINY)


def assert_close(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


@each_network
def test_decisions_are_the_convs_read_by_convs_and_linear_layers_alone(name):
    backbone, shape = networks.make(name)
    network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape))
    assert [decision.conv for decision in network.decisions] == list(networks.READERS[name])


@each_network
def test_full_options_repeat_the_backbone(name, exported):
    case = exported(name)
    images = case.images(3)
    with torch.no_grad():
        assert_close(case.network.run(images, case.network.full_options(3)), case.backbone(images))


@each_network
def test_masked_reference_agrees_with_hooks_on_the_backbone(name, exported):
    case = exported(name)
    images, options = case.images(BATCH), case.options(BATCH)
    with torch.no_grad():
        got = case.network.run(images, options)
    assert_close(got, hooked_outputs(case.backbone, case.network, networks.READERS[name], images, options))


@each_network
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_controller_agrees_with_masked_reference_for_any_options(name, exported, data):
    case = exported(name)
    batch = data.draw(st.integers(1, 6))
    options = case.options(batch, data.draw(st.integers(0, 10**6)))
    images = case.images(batch, data.draw(st.integers(0, 10**6)))
    with Controller.load(case.path) as controller, torch.no_grad():
        result = controller.run(images.numpy(), options=options.numpy())
        assert_close(result.outputs, case.network.run(images, options))
        assert (result.macs == case.network.macs(options).numpy()).all()
        assert (result.options == options.numpy()).all()


@each_network
@pytest.mark.parametrize("penalty", [None, -1.0, 0.0, 0.05, 1.0])
def test_controller_decides_as_the_torch_agent(name, penalty, exported):
    case = exported(name)
    images = case.images(BATCH)
    with Controller.load(case.path) as controller, torch.no_grad():
        result = controller.run(images.numpy(), penalty=penalty)
        outputs, options = case.network(images, penalty)
    assert (result.options == options.numpy()).all()
    assert_close(result.outputs, outputs)


@each_network
def test_a_mixed_batch_equals_its_samples_run_one_by_one(name, exported):
    case = exported(name)
    images, options = case.images(BATCH).numpy(), case.options(BATCH).numpy()
    with Controller.load(case.path) as controller:
        together = controller.run(images, options=options)
        alone = [controller.run(images[i : i + 1], options=options[i : i + 1]) for i in range(BATCH)]
    assert_close(together.outputs, np.concatenate([result.outputs for result in alone]))
    assert (together.macs == np.concatenate([result.macs for result in alone])).all()


@each_network
def test_dearer_groups_never_cost_more(name, exported):
    case = exported(name)
    images = case.images(BATCH).numpy()
    with Controller.load(case.path) as controller:
        macs = [controller.run(images, penalty=penalty).macs.sum() for penalty in (-100.0, 100.0)]
        floor = controller.run(images, options=np.ones((BATCH, len(case.network.decisions)), int)).macs.sum()
        ceiling = controller.manifest.macs * BATCH
    assert macs == [ceiling, floor]


def test_pruned_channels_do_not_reach_the_output(exported):
    """Whatever the weights of pruned filters are, the masked outputs stay the same."""
    case = exported("chain")
    images = case.images(2)
    options = torch.ones(2, len(case.network.decisions), dtype=torch.long)
    decision = case.network.decisions[0]
    conv = case.network.backbone.get_submodule(decision.conv)
    kept = conv.weight.detach().clone()
    with torch.no_grad():
        before = case.network.run(images, options)
        try:
            conv.weight[decision.widths[0] :] = 1e6
            after = case.network.run(images, options)
        finally:
            conv.weight.copy_(kept)
    assert torch.equal(before, after)
