"""torchvision's classification families, from the network to the controller, at random options."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import networks
from backends import cpu_controllers
from families import FAMILIES
from reference import zeroed_outputs
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork

TOLERANCE = 1e-4
#: One decision for a block where a network has so many convolutions that export takes long.
BLOCKS = ("inception_v3", "googlenet", "squeezenet")


def assert_close(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


def made(name, **settings):
    family = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        backbone = networks.randomised(family.build())
        example = torch.zeros(1, 3, family.size, family.size)
        network = RuntimePrunedNetwork.from_backbone(backbone, example, **settings)
        images = torch.randn(4, 3, family.size, family.size)
        options = network.random_options(4)
    return backbone, network, images, options


@pytest.mark.parametrize("name", FAMILIES)
def test_controllers_match_the_masked_reference(name, tmp_path):
    granularity = "block" if name in BLOCKS else "conv"
    _, network, images, options = made(name, groups=2, granularity=granularity)
    export_bundle(network, tmp_path / "bundle", verify=1)
    with torch.no_grad():
        expected = network.run(images, options)
    with cpu_controllers(tmp_path / "bundle") as controllers:
        for controller in controllers:
            result = controller.run(images.numpy(), options=options.numpy())
            assert_close(result.outputs, expected)
            assert result.macs.tolist() == network.macs(options).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_masked_reference_matches_zeroing_in_the_original(name):
    backbone, network, images, options = made(name)
    images, options = images[:2], options[:2]
    expected = zeroed_outputs(backbone, network, FAMILIES[name].padded_at, images, options)
    with torch.no_grad():
        assert_close(network.run(images, options), expected)
        full = network.full_options(2)
        assert_close(network.run(images, full), backbone(images))
        assert (expected - backbone(images)).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("name", FAMILIES)
def test_dropped_filters_are_read_by_nobody(name):
    backbone, network, images, options = made(name)
    images, options = images[:2], options[:2]
    at = FAMILIES[name].padded_at
    expected = zeroed_outputs(backbone, network, at, images, options)
    assert_close(zeroed_outputs(backbone, network, at, images, options, noise=10.0), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_convolution_has_a_role_and_a_reason(name):
    backbone, network, _, _ = made(name)
    convs = [path for path, module in backbone.named_modules() if isinstance(module, torch.nn.Conv2d)]
    roles = {role.conv: role for role in network.explain()}
    listed = [conv for conv in convs if not conv.startswith(("aux1", "aux2", "AuxLogits"))]
    assert set(listed) <= set(roles)
    assert all(role.reason and role.macs > 0 for role in roles.values())
    assert "prunable" in {role.role for role in roles.values()}
