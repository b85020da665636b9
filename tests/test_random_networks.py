"""Sliced = masked = zeroed in the original, for random networks and random options."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import networks
from backends import cpu_controllers
from random_networks import PARTS, RandomCnn, padded_at
from reference import zeroed_outputs
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork

TOLERANCE = 1e-4
RELAXED = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
parts = st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=4)
pruning = st.fixed_dictionaries({
    "groups": st.sampled_from([2, 4]),
    "align": st.sampled_from([1, 8]),
    "granularity": st.sampled_from(["conv", "block"]),
    "overrides": st.sampled_from([{}, {"parts.0*": 2}]),
})  # fmt: skip


def close(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    return got.shape == expected.shape and np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


def made(names, channels, flatten, seed, **arguments):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = networks.randomised(RandomCnn(names, channels, flatten))
        images = torch.randn(3, 3, 10, 10)
        network = RuntimePrunedNetwork.from_backbone(backbone, images[:1], min_macs_share=0.0, **arguments)
        return backbone, network, images, network.random_options(3)


@given(parts, st.sampled_from([8, 16]), st.booleans(), st.integers(0, 99), pruning)
@settings(max_examples=60, **RELAXED)
def test_masked_matches_zeroing_in_the_original(names, channels, flatten, seed, arguments):
    backbone, network, images, options = made(names, channels, flatten, seed, **arguments)
    expected = zeroed_outputs(backbone, network, padded_at, images, options)
    noisy = zeroed_outputs(backbone, network, padded_at, images, options, noise=10.0)
    with torch.no_grad():
        assert close(network.run(images, options), expected)
        assert close(network.run(images, network.full_options(3)), backbone(images))
    assert close(noisy, expected)


@given(
    parts, st.sampled_from([8, 16]), st.booleans(), st.integers(0, 99), pruning,
    st.sampled_from(["pairs", "outputs", {"parts.1*": "outputs"}]),
)  # fmt: skip
@settings(max_examples=12, **RELAXED)
def test_sliced_matches_masked(names, channels, flatten, seed, arguments, branches):
    _, network, images, options = made(names, channels, flatten, seed, **{**arguments, "groups": 2})
    with tempfile.TemporaryDirectory() as folder:
        export_bundle(network, Path(folder) / "bundle", branches=branches, verify=1)
        with cpu_controllers(Path(folder) / "bundle") as runs, torch.no_grad():
            expected = network.run(images, options)
            for controller in runs:
                assert close(controller.run(images.numpy(), options=options.numpy()).outputs, expected)
