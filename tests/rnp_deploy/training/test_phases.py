"""The order of the phases, and what a step of each descends."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import undecided
from rnp_deploy.errors import TrainingError
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.training import TrainingConfig
from rnp_deploy.training.phases import (
    AGENT,
    BACKBONE,
    MEASURE,
    RANDOM,
    TUNING,
    Descent,
    Phase,
    agent_step,
    backbone_step,
    options_step,
    schedule,
    tuning_step,
)
from rnp_deploy.training.q_learning import Draws, draw, q_loss, rewards, roll_out
from tiny_training import TINY as PLAIN
from tiny_training import tensors, tiny_backbone, tiny_data, tiny_network

Batch = tuple[Tensor, Tensor, Draws]
#: Not the defaults, so that a setting that is not read shows.
TINY = dataclasses.replace(PLAIN, label_smoothing=0.1, relative_loss=False)


@pytest.fixture
def network() -> RuntimePrunedNetwork:
    return undecided(tiny_network("4,8,8,8"))


@pytest.fixture
def batch(network: RuntimePrunedNetwork) -> Batch:
    images, labels = (x[:32] for x in tensors(tiny_data().train))
    return images, labels, draw(network, 32, torch.Generator().manual_seed(0))


def test_the_schedule_is_that_of_algorithm_1() -> None:
    config = TrainingConfig(
        backbone_epochs=3, random_epochs=2, rounds=2, agent_minibatches=7, backbone_minibatches=5
    )
    assert schedule(config, epoch=10) == (
        Phase(BACKBONE, 30, 0, 30),
        Phase(RANDOM, 20, 0, 20),
        Phase(MEASURE, 10, 0, 10),
        Phase(AGENT, 7, 0, 14),
        Phase(TUNING, 5, 0, 10),
        Phase(AGENT, 7, 7, 14),
        Phase(TUNING, 5, 5, 10),
    )


def test_a_trained_backbone_has_no_phase_of_its_own() -> None:
    names = [phase.name for phase in schedule(dataclasses.replace(TINY, backbone_epochs=0), epoch=4)]
    assert names == [RANDOM, MEASURE, AGENT, TUNING, AGENT, TUNING]


def test_the_learning_rate_falls_along_a_cosine() -> None:
    weight = nn.Parameter(torch.zeros(1))
    descent = Descent("agent", [weight], rate=0.1, steps=8)
    assert [descent.rate_at(done) for done in (0, 4, 8)] == pytest.approx([0.1, 0.05, 0.0])
    for done in range(8):
        before = weight.item()
        descent.step(3 * weight.sum(), done)
        # Under a gradient that never changes, Adam moves by the learning rate.
        rate = 0.1 * (1 + math.cos(math.pi * done / 8)) / 2
        assert before - weight.item() == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_names_phase_and_step_and_changes_no_weight(value: float) -> None:
    weight = nn.Parameter(torch.ones(2))
    descent = Descent("agent", [weight], rate=0.1, steps=8)
    descent.step(weight.sum(), 0)
    before = weight.detach().clone()
    with pytest.raises(TrainingError, match=rf"loss is {value} in phase 'agent', step 4 of 8"):
        descent.step(weight.sum() * value, 3)
    assert torch.equal(weight, before)


def test_the_plain_backbone_descends_its_cross_entropy(batch: Batch) -> None:
    images, labels, _ = batch
    backbone = tiny_backbone().eval()
    result = backbone_step(backbone, images, labels, TINY)
    assert backbone.training
    logits = tiny_backbone().train()(images)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.class_loss, expected)
    assert torch.equal(result.correct, logits.argmax(1) == labels)
    assert result.options is None


def test_given_options_are_what_is_computed(network: RuntimePrunedNetwork, batch: Batch) -> None:
    images, labels, draws = batch
    result = options_step(network, images, labels, draws.options, TINY)
    logits = network.run(images, draws.options)
    torch.testing.assert_close(result.loss, F.cross_entropy(logits, labels, label_smoothing=0.1))
    assert result.options is draws.options


def test_an_agent_step_descends_the_q_loss_of_its_own_roll_out(
    network: RuntimePrunedNetwork, batch: Batch
) -> None:
    images, labels, draws = batch
    config = dataclasses.replace(TINY, gamma=0.7)
    result = agent_step(network.train(), images, labels, draws, 0.4, 2.5, config)
    assert not network.training
    rollout = roll_out(network, images, draws, 0.4)
    losses = F.cross_entropy(rollout.outputs, labels, reduction="none", label_smoothing=0.1)
    r = rewards(rollout.options, losses, draws.penalties, alpha=2.5)
    torch.testing.assert_close(result.loss, q_loss(rollout.q_values, rollout.options, r, gamma=0.7))
    torch.testing.assert_close(result.class_loss, losses.mean())
    assert result.options is not None
    assert torch.equal(result.options, rollout.options)


@pytest.mark.parametrize(("share", "random"), [(0.0, 0), (0.25, 8), (1.0, 32)])
def test_the_backbone_is_tuned_under_the_agents_decisions_and_some_random_ones(
    share: float, random: int, network: RuntimePrunedNetwork, batch: Batch
) -> None:
    images, labels, draws = batch
    with torch.no_grad():
        expected = network(images, draws.penalties)[1]
    expected[:random] = draws.options[:random]
    result = tuning_step(network, images, labels, draws, dataclasses.replace(TINY, random_share=share))
    assert result.options is not None
    assert torch.equal(result.options, expected)
    assert network.training
    result.loss.backward()
    assert all(parameter.grad is None for parameter in network.agent.parameters())
    assert all(parameter.grad is not None for parameter in network.backbone.parameters())


def test_a_relative_loss_costs_nothing_where_the_whole_network_computes(
    network: RuntimePrunedNetwork, batch: Batch
) -> None:
    """Decisions cannot change what is taken off: the rewards of two paths of an image differ as before."""
    images, labels, draws = batch
    whole = draws._replace(options=network.full_options(32))
    relative, paper = (dataclasses.replace(PLAIN, relative_loss=flag) for flag in (True, False))
    got = agent_step(network, images, labels, whole, 1.0, 2.0, relative)
    q_values, options, outputs = roll_out(network, images, whole, 1.0)
    assert torch.equal(options, whole.options)
    free = rewards(options, torch.zeros(32), whole.penalties, 2.0)
    torch.testing.assert_close(got.loss, q_loss(q_values, options, free))
    got = agent_step(network, images, labels, whole, 1.0, 2.0, paper)
    losses = F.cross_entropy(outputs, labels, reduction="none", label_smoothing=0.1)
    full = rewards(options, losses, whole.penalties, 2.0)
    torch.testing.assert_close(got.loss, q_loss(q_values, options, full))
    few = agent_step(network, images, labels, draws, 1.0, 2.0, relative)
    q_values, options, outputs = roll_out(network, images, draws, 1.0)
    losses = F.cross_entropy(outputs, labels, reduction="none", label_smoothing=0.1) - losses
    torch.testing.assert_close(
        few.loss, q_loss(q_values, options, rewards(options, losses, draws.penalties, 2.0))
    )


def test_a_gradient_that_is_not_finite_changes_no_weight() -> None:
    weight = nn.Parameter(torch.zeros(1))
    loss = (weight.sqrt() + 1).sum()  # finite, and infinitely steep
    with pytest.raises(TrainingError, match=r"the norm of the gradient is inf in phase 'agent', step 4 of 8"):
        Descent("agent", [weight], 0.1, 8).step(loss, 3)
    assert weight.item() == 0
