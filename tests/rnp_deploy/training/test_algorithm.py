"""Algorithm 1 on a tiny scale: determinism, errors, and what the calibration says."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from rnp_deploy.datasets import ArrayImages, ImageData, LabelledImages, load_data
from rnp_deploy.errors import InputError, NothingPrunableError, TrainingError
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.progress import no_progress
from rnp_deploy.pruning_settings import PruningSettings
from rnp_deploy.training import TrainingConfig, TrainingResult, evaluate, train
from rnp_deploy.training.backbones import digits_cnn
from rnp_deploy.training.minibatches import minibatches
from rnp_deploy.training.phases import alternate, balanced_alpha

TINY = TrainingConfig(
    pruning=PruningSettings(groups=2), batch_size=32, backbone_epochs=2, random_epochs=2, rounds=2,
    agent_minibatches=6, backbone_minibatches=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def data() -> ImageData:
    digits = load_data("digits")
    train, test = digits.train.read(np.arange(128)), digits.test.read(np.arange(60))
    return dataclasses.replace(digits, train=ArrayImages(*train), test=ArrayImages(*test))


def tensors(split: LabelledImages) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = split.read(np.arange(len(split)))
    return torch.from_numpy(images), torch.from_numpy(labels)


@pytest.fixture(scope="module")
def backbone() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return digits_cnn(widths="4,4,4,4")


@pytest.fixture(scope="module")
def result(backbone: torch.nn.Module, data: ImageData) -> TrainingResult:
    return train(backbone, data, TINY)


def network_of(backbone: torch.nn.Module, **arguments: Any) -> RuntimePrunedNetwork:
    return RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, 1, 16, 16), 2, **arguments)


def test_the_same_seed_gives_the_same_network_bit_for_bit(
    backbone: torch.nn.Module, data: ImageData, result: TrainingResult
) -> None:
    torch.rand(3)  # the caller's random state does not matter
    again = train(backbone, data, TINY)
    for name, tensor in result.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name
    assert again.calibration == result.calibration
    other = train(backbone, data, dataclasses.replace(TINY, seed=1))
    assert not torch.equal(other.network.agent.decoder.weight, result.network.agent.decoder.weight)


def test_training_leaves_the_callers_backbone_and_random_state(
    backbone: torch.nn.Module, data: ImageData
) -> None:
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    state = torch.get_rng_state()
    trained = train(backbone, data, dataclasses.replace(TINY, rounds=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())
    assert not torch.equal(trained.network.backbone.state_dict()["0.weight"], weights["0.weight"])


def test_progress_ends_every_phase(backbone: torch.nn.Module, data: ImageData) -> None:
    calls: dict[str, list[tuple[int, int]]] = {}
    train(backbone, data, TINY, lambda task, done, total: calls.setdefault(task, []).append((done, total)))
    totals = {"backbone": 8, "random options": 8, "agent and backbone": 18}
    assert calls == {task: [(i + 1, total) for i in range(total)] for task, total in totals.items()}


def test_the_calibration_says_what_the_network_does(result: TrainingResult, data: ImageData) -> None:
    network, calibration = result.network, result.calibration
    assert not network.training
    with torch.no_grad():
        images, labels = tensors(data.test)
        logits, options = network(images)
        full = network.run(images, network.full_options(60))
    point = calibration.points[0]
    assert (calibration.data, calibration.samples, point.penalty) == ("digits:test", 60, TINY.penalty)
    assert point.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert calibration.full_accuracy == pytest.approx((full.argmax(1) == labels).double().mean().item())
    shares = network.macs(options).double() / network.macs(network.full_options(1))
    assert point.macs_share == pytest.approx(shares.mean().item())
    assert point.option_counts == tuple(
        tuple(int((options[:, t] == j).sum()) for j in (1, 2)) for t in range(3)
    )


def test_evaluation_does_not_explore(backbone: torch.nn.Module, data: ImageData) -> None:
    network = network_of(backbone).train()
    with torch.no_grad():
        network.agent.decoder.bias.copy_(torch.tensor([0.0, 9.0]))
    images, labels = tensors(data.test)
    assert evaluate(network, images, labels).option_counts == ((0, 60),) * 3
    assert evaluate(network, images, labels, penalty=20.0).option_counts == ((60, 0),) * 3
    assert not network.training


def test_a_high_price_teaches_the_cheapest_options(backbone: torch.nn.Module, data: ImageData) -> None:
    config = dataclasses.replace(TINY, penalty=5.0, agent_minibatches=30)
    assert train(backbone, data, config).calibration.points[0].option_counts == ((60, 0),) * 3


def test_alpha_makes_the_mean_loss_one(backbone: torch.nn.Module, data: ImageData) -> None:
    network = network_of(backbone)
    head = network.backbone.get_submodule("15")
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    batches = minibatches(*tensors(data.train), 32)
    assert balanced_alpha(network, batches, 4, TINY) == pytest.approx(1 / math.log(10))  # ten equal logits


@pytest.mark.parametrize(("value", "words"), [(math.nan, "loss is nan"), (math.inf, "loss is (nan|inf)")])
def test_a_loss_that_is_not_finite_names_phase_and_step(
    value: float, words: str, backbone: torch.nn.Module, data: ImageData
) -> None:
    images, labels = data.train.read(np.arange(128))
    broken = dataclasses.replace(data, train=ArrayImages(np.full_like(images, value), labels))
    with pytest.raises(TrainingError, match=rf"{words} in phase 'backbone', step 1 of 8"):
        train(backbone, broken, TINY)


def test_a_q_loss_that_is_not_finite_names_phase_and_step(backbone: torch.nn.Module, data: ImageData) -> None:
    batches = minibatches(*tensors(data.train), 32)
    with pytest.raises(TrainingError, match=r"phase 'agent', step 1 of 12"):
        alternate(network_of(backbone), batches, math.nan, TINY, no_progress)


def test_a_backbone_that_cannot_be_pruned_is_refused_before_training(data: ImageData) -> None:
    def fail(task: str, done: int, total: int) -> None:
        pytest.fail(f"{task} was trained")

    with pytest.raises(NothingPrunableError):
        train(digits_cnn(widths="4,3,3,3"), data, TINY, fail)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"penalty": math.nan}, "penalty is nan"),
        ({"penalty": -0.1}, "penalty is -0.1"),
        ({"agent_rate": 0.0}, "agent_rate is 0.0"),
        ({"random_share": 1.5}, "random_share is 1.5"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainingConfig(**settings)


@pytest.mark.parametrize("groups", [1, 0, 2.0, True, "4"])
def test_bad_groups_are_refused(groups: Any) -> None:
    with pytest.raises(ValidationError, match="groups"):
        TrainingConfig(pruning=PruningSettings(groups=groups))
