"""The decision process and the Q-learning loss, against hand-computed values."""

import pytest
import torch

from networks import undecided
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.training.q_learning import draw, epsilon_at, explore, q_loss, rewards, roll_out
from tiny_training import tiny_network

PRICES = torch.tensor([-0.02, 0.0, 0.05, 0.2, 0.5])


@pytest.fixture
def network() -> RuntimePrunedNetwork:
    return undecided(tiny_network("4,8,8,8", groups=4))


def images_of(samples: int) -> torch.Tensor:
    return torch.randn(samples, 1, 16, 16, generator=torch.Generator().manual_seed(3))


def test_rewards_are_incremental_and_the_terminal_one_is_each_samples_own() -> None:
    options = torch.tensor([[1, 3], [2, 4]])
    losses = torch.tensor([0.5, 2.0])
    r = rewards(options, losses, penalties=0.1, alpha=2.0)
    torch.testing.assert_close(r, torch.tensor([[0.0, -0.2 - 1.0], [-0.1, -0.3 - 4.0]]))


def test_every_sample_pays_its_own_price() -> None:
    options = torch.tensor([[2, 1], [2, 1], [4, 3]])
    r = rewards(options, torch.tensor([1.0, 3.0, 0.0]), torch.tensor([0.1, 0.5, -0.02]), alpha=0.5)
    torch.testing.assert_close(r, torch.tensor([[-0.1, -0.5], [-0.5, -1.5], [0.06, 0.04]]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_q_loss_of_a_hand_computed_example(gamma: float) -> None:
    q_values = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]], requires_grad=True)
    loss = q_loss(q_values, torch.tensor([[1, 2]]), torch.tensor([[-0.5, -1.0]]), gamma)
    # targets: -0.5 + γ·max(3, 5), and -1 at the end
    first, last = 1 - (-0.5 + gamma * 5), 5 - -1
    assert loss.item() == pytest.approx((first**2 + last**2) / 2)
    loss.backward()
    # the target's own max(3, 5) gets no gradient from the first decision
    torch.testing.assert_close(q_values.grad, torch.tensor([[[first, 0.0], [0.0, last]]]))


def test_q_loss_looks_at_the_sample_it_values() -> None:
    q_values, r = torch.zeros(2, 2, 2), torch.tensor([[0.0, 0.0], [0.0, -4.0]])
    q_values[1, 1, 0] = 3.0  # what sample 1 expects is no target of sample 0
    loss = q_loss(q_values, torch.tensor([[1, 1], [1, 2]]), r)
    assert loss.item() == pytest.approx((0 + 0 + 3**2 + 4**2) / 4)


def test_an_option_that_a_decision_lacks_is_never_the_best() -> None:
    q_values = torch.tensor([[[-1.0, -2.0], [-3.0, -torch.inf]]], requires_grad=True)
    loss = q_loss(q_values, torch.tensor([[2, 1]]), torch.tensor([[0.0, -3.0]]))
    assert loss.item() == pytest.approx((-2.0 - -3.0) ** 2 / 2)
    loss.backward()
    assert q_values.grad is not None
    assert torch.isfinite(q_values.grad).all()


def test_decisions_of_fewer_options_are_filled_up_with_worthless_ones() -> None:
    network = undecided(tiny_network("4,8,8,8", groups=4, overrides={"3": 2}))
    draws = draw(network, 64, torch.Generator().manual_seed(0))
    assert network.option_counts == (2, 4, 4)
    assert draws.options.amax(dim=0).tolist() == [2, 4, 4]
    q_values = roll_out(network, images_of(64), draws, epsilon=1.0).q_values
    assert q_values.shape == (64, 3, 4)
    assert (q_values[:, 0, 2:] == -torch.inf).all()
    assert torch.isfinite(q_values[:, 1:]).all()


def test_epsilon_falls_linearly() -> None:
    assert [epsilon_at(step, 11) for step in (0, 5, 10)] == pytest.approx([1.0, 0.55, 0.1])
    assert [epsilon_at(step, 3, 0.6, 0.2) for step in range(3)] == pytest.approx([0.6, 0.4, 0.2])
    assert epsilon_at(0, 1) == 1.0


def test_explore_replaces_where_the_coin_lies_below_epsilon() -> None:
    greedy, random = torch.tensor([1, 1, 1, 1]), torch.tensor([4, 3, 2, 4])
    coins = torch.tensor([0.0, 0.3, 0.5, 0.99])
    for epsilon, taken in ((0.0, [1, 1, 1, 1]), (0.4, [4, 3, 1, 1]), (1.0, [4, 3, 2, 4])):
        assert explore(greedy, random, coins, epsilon).tolist() == taken


def test_options_and_coins_are_drawn_evenly(network: RuntimePrunedNetwork) -> None:
    draws = draw(network, 4000, torch.Generator().manual_seed(0))
    for options, coins in zip(draws.options.T, draws.coins.T, strict=True):
        counts = torch.bincount(options, minlength=6)
        assert counts[0] == counts[5] == 0
        assert counts[1:5].min() > 880
        assert 0 <= coins.min() < coins.max() < 1
        assert coins.mean().item() == pytest.approx(0.5, abs=0.02)


def test_prices_of_a_conditioned_agent_are_even_on_its_scale(network: RuntimePrunedNetwork) -> None:
    scale, samples = network.agent.scale, 4000
    assert scale is not None
    penalties = draw(network, samples, torch.Generator().manual_seed(0)).penalties
    assert scale.numbers.low <= penalties.min() < penalties.max() <= scale.numbers.high
    positions = scale.position(penalties).sort().values
    even = (torch.arange(samples) + 0.5) / samples
    # Kolmogorov and Smirnov: 1.63/√N is passed by 99 % of samples that are uniform
    assert (positions - even).abs().max() < 1.63 / samples**0.5


def test_the_price_of_a_fixed_agent_is_its_own() -> None:
    network = tiny_network(penalty=0.07, penalty_range=None)
    penalties = draw(network, 9, torch.Generator().manual_seed(0)).penalties
    torch.testing.assert_close(penalties, torch.full((9,), 0.07))


def test_what_is_drawn_depends_on_the_generator_alone(network: RuntimePrunedNetwork) -> None:
    state = torch.get_rng_state()
    first = draw(network, 8, torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    for one, same in zip(first, draw(network, 8, torch.Generator().manual_seed(5)), strict=True):
        assert torch.equal(one, same)


def test_roll_out_carries_the_state_through_all_decisions(network: RuntimePrunedNetwork) -> None:
    images, draws = images_of(5), draw(network, 5, torch.Generator().manual_seed(0))
    draws = draws._replace(penalties=PRICES)
    rollout = roll_out(network, images, draws, epsilon=0.7)
    features: list[torch.Tensor] = []

    def replay(decision: int, pooled: torch.Tensor) -> torch.Tensor:
        features.append(pooled)
        return rollout.options[:, decision]

    with torch.no_grad():
        outputs, _ = network.route(images, replay)
    torch.testing.assert_close(rollout.outputs, outputs)
    zeros = state = network.agent.initial_state(images)
    for t, pooled in enumerate(features):
        carried, _, state = network.agent(t, pooled, state, PRICES)
        torch.testing.assert_close(rollout.q_values[:, t], carried)
        if t:
            reset = network.agent(t, pooled, zeros, PRICES).q_values
            assert not torch.allclose(reset, carried, atol=1e-4)
    assert len(features) == 3


def test_gradients_go_back_through_the_carried_state(network: RuntimePrunedNetwork) -> None:
    draws = draw(network, 4, torch.Generator().manual_seed(0))
    roll_out(network, images_of(4), draws, 1.0).q_values[:, 2].sum().backward()
    for encoder in network.agent.encoders:
        assert encoder.weight.grad.abs().max() > 0


def test_without_exploration_it_is_the_networks_own_policy(network: RuntimePrunedNetwork) -> None:
    images, draws = images_of(64), draw(network, 64, torch.Generator().manual_seed(0))
    rollout = roll_out(network, images, draws, epsilon=0.0)
    assert torch.equal(rollout.options, rollout.q_values.argmax(dim=2) + 1)
    assert torch.equal(rollout.options, network(images, draws.penalties)[1])
    assert not torch.equal(rollout.options, draws.options)


def test_exploring_all_the_time_takes_what_was_drawn(network: RuntimePrunedNetwork) -> None:
    images, draws = images_of(64), draw(network, 64, torch.Generator().manual_seed(0))
    assert torch.equal(roll_out(network, images, draws, epsilon=1.0).options, draws.options)
    mixed = roll_out(network, images, draws, epsilon=0.5).options
    explored = draws.coins < 0.5
    assert torch.equal(mixed[explored], draws.options[explored])
    assert not torch.equal(mixed, draws.options)


def test_q_learning_leaves_the_backbone_fixed(network: RuntimePrunedNetwork) -> None:
    before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    draws = draw(network, 8, torch.Generator().manual_seed(0))
    q_values, options, outputs = roll_out(network, images_of(8), draws, epsilon=1.0)
    q_loss(q_values, options, rewards(options, outputs.logsumexp(1), draws.penalties, 1.0)).backward()
    assert not outputs.requires_grad
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all(parameter.grad is not None for parameter in network.agent.parameters())
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("value", [-3.6, 3.6])
def test_returns_beyond_one_are_learnt_of_either_sign(value: float) -> None:
    """A tanh-bounded Q-value stops at 1, one behind a ReLU at 0."""
    network = undecided(tiny_network(penalty=0.0, penalty_range=None))
    optimizer = torch.optim.Adam(network.agent.parameters(), 3e-2)
    images, generator = images_of(16), torch.Generator().manual_seed(0)
    for _ in range(120):
        rollout = roll_out(network, images, draw(network, 16, generator), epsilon=1.0)
        r = rewards(rollout.options, torch.full((16,), -value), 0.0, alpha=1.0)
        loss = q_loss(rollout.q_values, rollout.options, r)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(rollout.q_values, torch.full_like(rollout.q_values, value), atol=0.2, rtol=0)


def test_q_learning_learns_decisions_that_depend_on_image_and_price(network: RuntimePrunedNetwork) -> None:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(network.agent.parameters(), 1e-2)
    bright = (torch.arange(64) % 2).float()
    for step in range(600):
        images = bright[:, None, None, None] + 0.1 * torch.randn(64, 1, 16, 16, generator=generator)
        draws = draw(network, 64, generator)
        q_values, options, _ = roll_out(network, images, draws, epsilon_at(step, 600))
        losses = bright * (options[:, -1] < 3)  # bright images need two more groups of the last conv
        loss = q_loss(q_values, options, rewards(options, losses, draws.penalties, alpha=0.3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Two groups more cost 0.1, less than the loss they save, or 0.8, more than it.
    for price, when_bright in ((0.05, 3), (0.4, 1)):
        with torch.no_grad():
            _, options = network(images, price)
        last = torch.where(bright == 1, when_bright, 1)
        expected = torch.stack([torch.ones_like(last), torch.ones_like(last), last], dim=1)
        assert (options == expected).all(dim=1).double().mean() > 0.9, price
