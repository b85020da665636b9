"""The controller on torch = on ONNX Runtime = the masked reference, for random networks and options."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import networks
from families import FAMILIES
from random_networks import PARTS, RandomCnn
from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines import ort
from rnp_deploy.engines.torch_engine import opener
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork

TOLERANCE = 1e-4
#: What the others have, and what they have not: norms, channels last, shuffles, Range and Gather.
SOME_FAMILIES = ("convnext", "shufflenet_v2", "mobilenet_v3")


def assert_close(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


def made(build, shape, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        backbone = networks.randomised(build())
        network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape), **settings)
        networks.undecided(network)
        return network, torch.randn(4, *shape), network.random_options(4)


@contextlib.contextmanager
def controllers(path):
    """On torch and on ONNX Runtime."""
    bundle = open_bundle(path)
    with (
        Controller(bundle.manifest, opener(bundle, "cpu")) as on_torch,
        Controller(bundle.manifest, ort.opener(bundle, 1)) as on_ort,
    ):
        yield on_torch, on_ort


def assert_all_agree(network, path, images, options):
    with controllers(path) as (on_torch, on_ort), torch.no_grad():
        got, other = (each.run(images.numpy(), options=options.numpy()) for each in (on_torch, on_ort))
        assert_close(got.outputs, network.run(images, options))
        assert_close(got.outputs, other.outputs)
        assert got.macs.tolist() == other.macs.tolist()
        got, other = (each.run(images.numpy(), penalty=0.01) for each in (on_torch, on_ort))
        assert got.options.tolist() == other.options.tolist()
        assert_close(got.outputs, other.outputs)


@pytest.mark.parametrize("name", networks.TINY)
def test_tiny_networks(name, exported):
    case = exported(name)
    assert_all_agree(case.network, case.path, case.images(6), case.options(6))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SOME_FAMILIES else pytest.mark.slow) for name in FAMILIES]
)
def test_families(name, tmp_path):
    family = FAMILIES[name]
    network, images, options = made(
        family.build, (3, family.size, family.size), groups=2, granularity="block"
    )
    export_bundle(network, tmp_path / "bundle", verify=1)
    assert_all_agree(network, tmp_path / "bundle", images, options)


@settings(
    max_examples=4, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(
    parts=st.lists(st.sampled_from(sorted(PARTS)), min_size=2, max_size=4, unique=True),
    flatten=st.booleans(),
    branches=st.sampled_from(["pairs", "outputs"]),
)
def test_random_networks(parts, flatten, branches):
    network, images, options = made(
        lambda: RandomCnn(parts, 8, flatten), (3, 10, 10), groups=2, min_macs_share=0.0, granularity="block"
    )
    with tempfile.TemporaryDirectory() as folder:
        export_bundle(network, Path(folder) / "bundle", branches=branches, verify=1)
        assert_all_agree(network, Path(folder) / "bundle", images, options)


@pytest.mark.parametrize("policy", ["regroup", "serial", "round-up"])
def test_policies(policy, exported):
    case = exported("chain")
    images = case.images(5).numpy()
    with controllers(case.path) as runs:
        got, other = (each.run(images, penalty=0.01, policy=policy) for each in runs)
    assert got.options.tolist() == other.options.tolist()
    assert_close(got.outputs, other.outputs)


def test_runs_repeat_bit_for_bit(exported):
    case = exported("chain")
    images, options = case.images(5).numpy(), case.options(5).numpy()
    with controllers(case.path) as (on_torch, _):
        first, again = (on_torch.run(images, options=options).outputs for _ in range(2))
    assert np.array_equal(first, again)
