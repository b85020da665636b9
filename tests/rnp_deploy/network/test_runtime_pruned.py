"""The torch network: options, MACs, moving, copying, gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import networks
from rnp_deploy.errors import InputError
from rnp_deploy.network import RuntimePrunedNetwork


@pytest.fixture
def network():
    backbone, shape = networks.make("chain with norm")
    return RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape))


IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
OPTIONS = torch.tensor([[1, 2, 3], [4, 4, 4], [3, 1, 2]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (torch.ones(2, 3, dtype=torch.long), "(2, 3)"),
        (torch.ones(3, 4, dtype=torch.long), "(3, 4)"),
        (torch.ones(3, 3), "float32"),
        (torch.ones(3, 3, dtype=torch.bool), "bool"),
        (torch.zeros(3, 3, dtype=torch.long), "0..0"),
        (torch.full((3, 3), 5), "1..4"),
    ],
)
def test_bad_options_are_refused(network, options, words):
    with pytest.raises(InputError) as caught:
        network.run(IMAGES, options)
    assert words in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 3, 16, 15), (3, 1, 16, 16), (3, 16, 16)])
def test_bad_images_are_refused(network, shape):
    with pytest.raises(InputError, match="images have shape"):
        network(torch.zeros(shape))


def test_widths_are_multiples_of_a_quarter(network):
    assert [decision.widths for decision in network.decisions] == [
        (4, 8, 12, 16), (4, 8, 12, 16), (8, 16, 24, 32)
    ]  # fmt: skip


def test_orders_are_permutations_by_falling_filter_norm(network):
    backbone, _ = networks.make("chain with norm")
    for decision in network.decisions:
        norms = backbone.get_submodule(decision.conv).weight.detach().flatten(1).norm(dim=1)
        assert sorted(decision.order) == list(range(len(norms)))
        ordered = norms[list(decision.order)]
        assert (ordered[:-1] >= ordered[1:] - 1e-6).all()
        ours = network.backbone.get_submodule(decision.conv).weight.detach().flatten(1).norm(dim=1)
        assert torch.allclose(ours, ordered)


def test_macs_by_hand(network):
    """16x16: 3→8, 8→16; 8x8: 16→16, 16→32; head 512→24→10."""
    conv = [256 * 9 * 3 * 8, 256 * 9 * 8 * 16, 64 * 9 * 16 * 16, 64 * 9 * 16 * 32]
    head = [512 * 24, 24 * 10]
    assert int(network.macs(network.full_options(1))) == sum(conv) + sum(head)
    cheapest = conv[0] + conv[1] // 4 + conv[2] // 16 + conv[3] // 16 + head[0] // 4 + head[1]
    assert int(network.macs(torch.ones(1, 3, dtype=torch.long))) == cheapest


def test_macs_of_a_depthwise_follower():
    backbone, shape = networks.make("separable")
    network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape))
    full = [64 * 9 * 3 * 8, 64 * 8 * 16, 64 * 9 * 16, 64 * 16 * 8, 128 * 6]
    assert int(network.macs(torch.tensor([[4, 4]]))) == sum(full)
    assert int(network.macs(torch.tensor([[2, 4]]))) == full[0] + (full[1] + full[2] + full[3]) // 2 + full[4]


def test_agent_macs_by_hand(network):
    embedding = state = 32
    assert network.agent.macs(0) == (8 + 1) * embedding + 3 * state * (embedding + state) + 4 * state


def test_per_sample_options_equal_single_runs(network):
    with torch.no_grad():
        together = network.run(IMAGES, OPTIONS)
        alone = torch.cat([network.run(IMAGES[i : i + 1], OPTIONS[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_state_dict_names_are_the_backbones(network):
    names = {name for name in network.state_dict() if not name.startswith("agent.")}
    backbone, _ = networks.make("chain with norm")
    assert names == {f"backbone.{name}" for name in backbone.state_dict()}


def test_a_copy_is_independent_and_equal(network):
    copied = copy.deepcopy(network)
    with torch.no_grad():
        before = network.run(IMAGES, OPTIONS)
        assert torch.equal(copied.run(IMAGES, OPTIONS), before)
        for parameter in copied.parameters():
            parameter.zero_()
        assert torch.equal(network.run(IMAGES, OPTIONS), before)
        assert not torch.equal(copied.run(IMAGES, OPTIONS), before)


def test_moving_takes_everything_along(network):
    with torch.no_grad():
        expected = network.run(IMAGES, OPTIONS)
        moved = network.double().run(IMAGES.double(), OPTIONS)
    assert moved.dtype == torch.float64
    assert torch.allclose(moved.float(), expected, atol=1e-5)


def test_buffers_read_by_name_move_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 2)
            self.register_buffer("scale", torch.full((1, 3, 1, 1), 2.0))

        def forward(self, x):
            return self.fc(self.b(self.a(x * self.scale)).relu().mean((2, 3)))

    network = RuntimePrunedNetwork.from_backbone(Scaled(), torch.zeros(1, 3, 8, 8)).double()
    assert network(torch.zeros(2, 3, 8, 8, dtype=torch.float64))[0].dtype == torch.float64


def test_only_kept_filters_get_gradients(network):
    options = torch.full((3, 3), 2)
    network.run(IMAGES, options).square().sum().backward()
    for decision in network.decisions:
        gradient = network.backbone.get_submodule(decision.conv).weight.grad
        kept = decision.widths[1]
        assert gradient[:kept].abs().sum() > 0
        assert gradient[kept:].abs().sum() == 0


def test_batch_norm_learns_in_training_mode(network):
    norm = next(m for m in network.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    network.train()
    network.run(IMAGES, OPTIONS)
    assert not torch.equal(norm.running_mean, before)


def test_the_agent_reads_masked_features(network):
    """Features of pruned channels are zero, whatever the convolution would have made there."""
    seen = {}

    def choose(decision, features):
        seen[decision] = features
        return torch.ones(3, dtype=torch.long)

    with torch.no_grad():
        network.route(IMAGES, choose)
    assert (seen[1][:, 4:] == 0).all()
    assert (seen[1][:, :4] != 0).any()
    assert seen[0].shape == (3, 8)
