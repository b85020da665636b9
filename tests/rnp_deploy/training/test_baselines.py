"""The comparison with simpler ways to spend as few MACs."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnp_deploy.datasets import ImageData
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.training import TrainingResult, phases, train
from rnp_deploy.training.baselines import (
    AGENT,
    DEALT,
    FIXED,
    NARROW,
    RANDOM,
    BaselinePoint,
    compare,
    random_options_at,
)
from tiny_training import TINY, tiny_backbone, tiny_data, tiny_network

CONFIG = dataclasses.replace(TINY, backbone_epochs=1, random_epochs=1, rounds=1, backbone_minibatches=2)
NARROW_STEPS = 4 + 4 + 2  # as many as the backbone of the network gets: no measuring, no agent


@pytest.fixture(scope="module")
def data() -> ImageData:
    return tiny_data()


@pytest.fixture(scope="module")
def result(data: ImageData) -> TrainingResult:
    return train(tiny_backbone("4,8,8,8"), data, CONFIG)


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def points(
    data: ImageData, result: TrainingResult, calls: list[tuple[str, int, int]]
) -> tuple[BaselinePoint, ...]:
    backbone = tiny_backbone("4,8,8,8")
    return compare(result, backbone, data, CONFIG, progress=lambda *call: calls.append(call))


def of(points: tuple[BaselinePoint, ...], method: str) -> list[BaselinePoint]:
    return [point for point in points if point.method == method]


def test_the_agents_points_are_its_calibration(
    points: tuple[BaselinePoint, ...], result: TrainingResult
) -> None:
    assert of(points, AGENT) == [
        BaselinePoint(AGENT, point.penalty, point.macs_share, point.accuracy)
        for point in result.calibration.points
    ]


def test_fixed_options_reach_from_the_cheapest_path_to_the_whole(
    points: tuple[BaselinePoint, ...], result: TrainingResult
) -> None:
    cheapest, whole = of(points, FIXED)
    network = result.network
    least = network.macs(torch.tensor([[1, 1, 1]])) / network.macs(torch.tensor([[2, 2, 2]]))
    assert (cheapest.setting, cheapest.macs_share) == (1, pytest.approx(least.item()))
    assert (whole.setting, whole.macs_share) == (2, 1.0)
    assert whole.accuracy == pytest.approx(result.calibration.full_accuracy)


def test_decisions_dealt_to_other_images_cost_what_the_agents_cost(points: tuple[BaselinePoint, ...]) -> None:
    dealt, chance, agent = of(points, DEALT), of(points, RANDOM), of(points, AGENT)
    for own, other, drawn in zip(agent, dealt, chance, strict=True):
        assert own.setting == other.setting == drawn.setting
        assert other.macs_share == pytest.approx(own.macs_share)
        assert drawn.macs_share == pytest.approx(own.macs_share, abs=0.02)  # of 60 images


def test_a_narrow_network_costs_what_its_path_costs_and_learns_as_long(
    points: tuple[BaselinePoint, ...], calls: list[tuple[str, int, int]]
) -> None:
    narrow, wide = of(points, NARROW)
    assert (wide.setting, wide.macs_share) == (2, 1)
    assert narrow.setting == 1
    assert narrow.macs_share == pytest.approx(of(points, FIXED)[0].macs_share)
    assert calls == [
        (f"narrow network {j}", i + 1, NARROW_STEPS) for j in (1, 2) for i in range(NARROW_STEPS)
    ]


def test_what_a_narrow_network_leaves_out_has_no_say_and_learns_nothing(
    data: ImageData, result: TrainingResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RuntimePrunedNetwork] = []
    step = phases.options_step

    def watched(network: RuntimePrunedNetwork, *rest: Any) -> phases.StepResult:
        seen.append(network)
        return step(network, *rest)

    monkeypatch.setattr(phases, "options_step", watched)
    backbone = tiny_backbone("4,8,8,8")
    compare(result, backbone, data, CONFIG)
    narrow, first = seen[0], tiny_network("4,8,8,8")
    assert len(seen) == 2 * NARROW_STEPS  # the narrow one, and one as wide as the network
    assert len({id(network) for network in seen[:NARROW_STEPS]}) == 1
    assert narrow.orders == first.orders
    images, options = torch.randn(8, 1, 16, 16), torch.ones(8, 3, dtype=torch.int64)
    with torch.no_grad():
        before = narrow.run(images, options)
        for conv in narrow.orders:
            weights, untrained = (
                network.backbone.get_parameter(f"{conv}.weight") for network in (narrow, first)
            )
            assert torch.equal(weights[4:], untrained[4:])
            assert not torch.equal(weights[:4], untrained[:4])
            weights[4:] = torch.randn(weights[4:].shape) * 100
        assert torch.equal(narrow.run(images, options), before)
        narrow.backbone.get_parameter("3.weight")[:4] += 1
        assert not torch.equal(narrow.run(images, options), before)


def test_a_comparison_leaves_the_backbone_and_is_always_the_same(
    data: ImageData, result: TrainingResult, points: tuple[BaselinePoint, ...]
) -> None:
    backbone: nn.Module = tiny_backbone("4,8,8,8")
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    torch.rand(5)
    assert compare(result, backbone, data, CONFIG) == points
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())


def drawn(network: RuntimePrunedNetwork, share: float, samples: int = 2000) -> tuple[Tensor, float]:
    options = random_options_at(network, samples, share, torch.Generator().manual_seed(0))
    full = network.macs(network.full_options(1)).item()
    return options, network.macs(options).double().mean().item() / full


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_random_decisions_meet_the_cost_asked_for_and_reach_the_ends(groups: int) -> None:
    network = tiny_network("8,16,16,16", groups, align=1)
    least = network.macs(torch.ones(1, 3, dtype=torch.int64)) / network.macs(network.full_options(1))
    low = least.item()
    for way in (0.0, 0.1, 0.3, 0.5, 0.8, 1.0):
        share = low + way * (1 - low)
        _, met = drawn(network, share)
        assert met == pytest.approx(share, rel=0.01), way
    assert drawn(network, 0.0)[1] == pytest.approx(low, rel=0.01)
    assert drawn(network, 2.0)[1] == pytest.approx(1.0, rel=0.01)


def test_random_decisions_are_independent_and_leave_no_option_out() -> None:
    network = tiny_network("8,16,16,16", 4, align=1)
    options, _ = drawn(network, 0.5)
    for column in options.T:
        assert torch.bincount(column, minlength=5)[1:].min() > 50
    correlations = torch.corrcoef(options.T.double()) - torch.eye(3)
    assert correlations.abs().max() < 0.08
