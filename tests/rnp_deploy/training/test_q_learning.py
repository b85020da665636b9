"""The decision process and the Q-learning loss, against hand-computed values."""

import pytest
import torch

from networks import undecided
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.training.backbones import digits_cnn
from rnp_deploy.training.q_learning import epsilon_at, explore, q_loss, rewards, roll_out


@pytest.fixture
def network() -> RuntimePrunedNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = digits_cnn(widths="4,8,8,8")
        network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, 1, 16, 16), groups=4)
    return undecided(network)


def test_rewards_are_incremental_and_the_terminal_one_is_each_samples_own() -> None:
    options = torch.tensor([[1, 3], [2, 4]])
    losses = torch.tensor([0.5, 2.0])
    r = rewards(options, losses, penalty=0.1, alpha=2.0)
    torch.testing.assert_close(r, torch.tensor([[0.0, -0.2 - 1.0], [-0.1, -0.3 - 4.0]]))


def test_q_loss_of_a_hand_computed_example() -> None:
    q_values = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]], requires_grad=True)
    loss = q_loss(q_values, torch.tensor([[1, 2]]), torch.tensor([[-0.5, -1.0]]), gamma=0.5)
    # targets: -0.5 + 0.5·max(3, 5) = 2, and -1 at the end; errors 2 - 1 and -1 - 5
    assert loss.item() == pytest.approx((1 + 36) / 2)
    loss.backward()
    # the target's own max(3, 5) gets no gradient from the first decision
    torch.testing.assert_close(q_values.grad, torch.tensor([[[-1.0, 0.0], [0.0, 6.0]]]))


def test_epsilon_falls_linearly() -> None:
    assert [epsilon_at(step, 11) for step in (0, 5, 10)] == pytest.approx([1.0, 0.55, 0.1])
    assert epsilon_at(0, 1) == 1.0


def test_explore_replaces_the_share_asked_for() -> None:
    torch.manual_seed(0)
    greedy = torch.full((4000,), 2)
    assert torch.equal(explore(greedy, 4, 0.0), greedy)
    half = explore(greedy, 4, 0.5)
    assert (half != greedy).double().mean().item() == pytest.approx(0.5 * 3 / 4, abs=0.04)
    counts = torch.bincount(explore(greedy, 4, 1.0), minlength=6)
    assert counts[0] == counts[5] == 0
    assert counts[1:5].min() > 850


def test_roll_out_carries_the_state_through_all_decisions(network: RuntimePrunedNetwork) -> None:
    images = torch.randn(5, 1, 16, 16)
    rollout = roll_out(network, images, epsilon=0.7)
    features: list[torch.Tensor] = []

    def replay(decision: int, pooled: torch.Tensor) -> torch.Tensor:
        features.append(pooled)
        return rollout.options[:, decision]

    outputs, _ = network.route(images, replay)
    torch.testing.assert_close(rollout.outputs, outputs)
    zeros = state = network.agent.initial_state(images)
    penalty = torch.full((5,), network.agent.penalty)
    for t, pooled in enumerate(features):
        carried, _, state = network.agent(t, pooled, state, penalty)
        torch.testing.assert_close(rollout.q_values[:, t], carried)
        if t:
            reset = network.agent(t, pooled, zeros, penalty).q_values
            assert not torch.allclose(reset, carried, atol=1e-4)
    assert len(features) == 3


def test_roll_out_without_exploration_is_the_networks_own_policy(network: RuntimePrunedNetwork) -> None:
    images = torch.randn(64, 1, 16, 16)
    rollout = roll_out(network, images, epsilon=0.0)
    assert torch.equal(rollout.options, rollout.q_values.argmax(dim=2) + 1)
    assert torch.equal(rollout.options, network(images)[1])
    assert not torch.equal(rollout.options, roll_out(network, images, epsilon=0.5).options)


def test_q_learning_leaves_the_backbone_fixed(network: RuntimePrunedNetwork) -> None:
    before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    q_values, options, outputs = roll_out(network, torch.randn(8, 1, 16, 16), epsilon=1.0)
    q_loss(q_values, options, rewards(options, outputs.logsumexp(1), 0.1, 1.0)).backward()
    assert all(parameter.grad is None for parameter in network.backbone.parameters())
    assert all(parameter.grad is not None for parameter in network.agent.parameters())
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_q_learning_learns_decisions_that_depend_on_the_image(network: RuntimePrunedNetwork) -> None:
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(network.agent.parameters(), 1e-2)
    for step in range(200):
        bright = (torch.arange(64) % 2).float()
        images = bright[:, None, None, None] + 0.1 * torch.randn(64, 1, 16, 16)
        q_values, options, _ = roll_out(network, images, epsilon_at(step, 200))
        losses = bright * (options[:, -1] < 3)  # bright images need two more groups of the last conv
        loss = q_loss(q_values, options, rewards(options, losses, penalty=0.1, alpha=2.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        _, options = network(images)
    expected = torch.where(bright[:, None] == 1, torch.tensor([1, 1, 3]), torch.tensor([1, 1, 1]))
    assert (options == expected).all(dim=1).double().mean() > 0.9
