"""The controller on torch = on ONNX Runtime = the masked reference; also in test_families, test_random_networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import networks
from backends import cpu_controllers

TOLERANCE = 1e-4
BATCH = 6


def assert_close(got, expected):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("name", networks.TINY)
def test_options_that_are_given(name, exported):
    case = exported(name)
    images, options = case.images(BATCH), case.options(BATCH)
    with cpu_controllers(case.path) as runs, torch.no_grad():
        expected = case.network.run(images, options)
        for controller in runs:
            assert_close(controller.run(images.numpy(), options=options.numpy()).outputs, expected)


@pytest.mark.parametrize("name", networks.TINY)
@pytest.mark.parametrize("batch", [1, BATCH])
def test_the_agents_own_options(name, batch, exported):
    case = exported(name)
    images = case.images(batch)
    with cpu_controllers(case.path) as runs, torch.no_grad():
        expected, options = case.network(images, penalty=0.01)
        for controller in runs:
            result = controller.run(images.numpy(), penalty=0.01)
            assert result.options.tolist() == options.tolist()
            assert_close(result.outputs, expected)


@pytest.mark.parametrize("policy", ["regroup", "serial", "round-up"])
def test_policies(policy, exported):
    case = exported("chain")
    with cpu_controllers(case.path) as runs:
        expected, got = (each.run(case.images(BATCH).numpy(), penalty=0.01, policy=policy) for each in runs)
    assert got.options.tolist() == expected.options.tolist()
    assert got.macs.tolist() == expected.macs.tolist()
    assert_close(got.outputs, expected.outputs)


def test_runs_repeat_bit_for_bit(exported):
    case = exported("chain")
    images, options = case.images(BATCH).numpy(), case.options(BATCH).numpy()
    with cpu_controllers(case.path) as (_, on_torch):
        first, again = (on_torch.run(images, options=options).outputs for _ in range(2))
    assert np.array_equal(first, again)
