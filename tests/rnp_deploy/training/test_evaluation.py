"""What a network does on held-out images, against the network run by hand."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from networks import undecided
from rnp_deploy.datasets import ArrayImages, load_data, spread_rows
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.training.evaluation import (
    agent_policy,
    calibration_points,
    evaluate,
    fixed_policy,
    outcomes,
    point_of,
)
from tiny_training import tiny_data, tiny_network

HELD_OUT = load_data("digits").test  # 450, more than are read at once
FEW = tiny_data().test


@pytest.fixture
def network() -> RuntimePrunedNetwork:
    return undecided(tiny_network("4,8,8,8", groups=4))


@pytest.mark.parametrize("workers", [0, 2])
def test_outcomes_are_what_the_network_does(workers: int, network: RuntimePrunedNetwork) -> None:
    rows = np.random.default_rng(0).permutation(450)[:300]
    own = network.random_options(300, torch.Generator().manual_seed(0))
    one = torch.tensor([4, 1, 2])
    policies = [agent_policy(network, 0.2), fixed_policy(network, own), fixed_policy(network, one)]
    found = outcomes(network.train(), HELD_OUT, policies, rows, workers)
    assert not network.training
    images, labels = (torch.from_numpy(x) for x in HELD_OUT.read(rows))
    with torch.no_grad():
        chosen = network(images, 0.2)[1]
        for outcome, options in zip(found, (chosen, own, one.expand(300, -1)), strict=True):
            logits = network.run(images, options)
            losses = F.cross_entropy(logits, labels, reduction="none")
            assert torch.equal(outcome.options, options)
            torch.testing.assert_close(outcome.losses, losses)
            assert torch.equal(outcome.correct, logits.argmax(1) == labels)
            assert outcome.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert not outcome.losses.requires_grad


def test_evaluation_does_not_explore(network: RuntimePrunedNetwork) -> None:
    with torch.no_grad():
        network.agent.decoder.weight.zero_()
        network.agent.decoder.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 30.0]))
    assert evaluate(network.train(), FEW).option_counts == ((0, 0, 0, 60),) * 3
    assert evaluate(network, FEW, penalty=20.0).option_counts == ((60, 0, 0, 0),) * 3
    assert not network.training


def test_the_agents_own_penalty_is_taken_where_none_is_named(network: RuntimePrunedNetwork) -> None:
    assert evaluate(network, FEW) == evaluate(network, FEW, network.agent.penalty)
    assert evaluate(network, FEW).penalty == network.agent.penalty


def test_a_point_counts_options_and_macs(network: RuntimePrunedNetwork) -> None:
    options = torch.tensor([[1, 2, 4], [1, 4, 4], [3, 2, 4]])
    (outcome,) = outcomes(network, FEW, [fixed_policy(network, options)], np.arange(3))
    point = point_of(network, outcome, 0.3)
    assert point.option_counts == ((2, 0, 1, 0), (0, 2, 0, 1), (0, 0, 0, 3))
    full = network.macs(torch.tensor([[4, 4, 4]])).item()
    assert point.macs_share == pytest.approx(network.macs(options).double().mean().item() / full)
    assert point.penalty == 0.3


def test_calibration_points_rise_and_hold_the_agents_own_penalty(network: RuntimePrunedNetwork) -> None:
    points = calibration_points(network, FEW)
    penalties = [point.penalty for point in points]
    assert penalties == sorted(set(penalties))
    assert network.agent.penalty in penalties
    assert (penalties[0], penalties[-1]) == pytest.approx(network.agent.penalty_range)
    assert points[3] == evaluate(network, FEW, penalties[3])


@pytest.mark.parametrize("penalty_range", [None, (-0.02, 0.5)])
def test_points_lie_closer_where_the_cost_falls(penalty_range: tuple[float, float] | None) -> None:
    network = tiny_network("4,8,8,8", groups=4, penalty=0.0, penalty_range=penalty_range)
    with torch.no_grad():  # a group is worth 0.1 everywhere, so the cost falls at that price alone
        network.agent.decoder.weight.zero_()
        network.agent.decoder.bias.copy_(0.1 * torch.arange(4))
    points = calibration_points(network, FEW)
    shares = [point.macs_share for point in points]
    assert set(shares) == {1.0, shares[-1]}
    below = max(point.penalty for point in points if point.macs_share == 1)
    above = min(point.penalty for point in points if point.macs_share < 1)
    assert below < 0.1 < above
    assert above - below < 0.3 * 0.1
    gaps = [right.penalty - left.penalty for left, right in itertools.pairwise(points)]
    assert max(gaps) > 0.1  # where nothing falls there are fewer


def test_a_few_rows_are_spread_over_all() -> None:
    images = ArrayImages(np.zeros((10, 1, 1, 1), np.float32), np.arange(10))
    assert spread_rows(images, 4).tolist() == [0, 2, 5, 7]
    assert spread_rows(images, 10).tolist() == list(range(10))
    assert spread_rows(images, 99).tolist() == list(range(10))
