"""The agent: one shared cell, linear Q-values, a price that shifts them."""

from __future__ import annotations

import torch
from torch import nn

from rnp_deploy.network.agent import Agent


def agent():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Agent([8, 16], option_counts=[4, 4], embedding_size=6, state_size=5, penalty=0.1)


FEATURES = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def test_shapes_and_range():
    q_values, option, state = agent()(0, FEATURES, torch.zeros(3, 5), torch.full((3,), 0.1))
    assert q_values.shape == (3, 4)
    assert state.shape == (3, 5)
    assert option.dtype == torch.int64
    assert ((option >= 1) & (option <= 4)).all()


def test_the_cell_and_decoder_are_shared_and_encoders_are_not():
    a = agent()
    assert a.step(0).cell is a.step(1).cell
    assert a.step(0).decoder is a.step(1).decoder
    assert a.step(0).encoder is not a.step(1).encoder


def test_the_state_matters():
    a = agent()
    price = torch.full((3,), 0.1)
    assert not torch.allclose(
        a(0, FEATURES, torch.zeros(3, 5), price)[0], a(0, FEATURES, torch.ones(3, 5), price)[0]
    )


def test_q_values_can_leave_the_range_of_tanh():
    """Returns near -3.6 have to be representable."""
    a = agent()
    nn.init.constant_(a.decoder.bias, -3.6)
    nn.init.zeros_(a.decoder.weight)
    q_values, _, _ = a(0, FEATURES, torch.zeros(3, 5), torch.full((3,), 0.1))
    assert torch.allclose(q_values, torch.full((3, 4), -3.6))


def test_a_dearer_group_lowers_q_by_option_minus_one():
    a = agent()
    state = torch.zeros(3, 5)
    trained = a(0, FEATURES, state, torch.full((3,), 0.1)).q_values
    dearer = a(0, FEATURES, state, torch.tensor([0.1, 0.3, 0.5])).q_values
    shift = torch.tensor([0.0, 0.2, 0.4])[:, None] * torch.arange(4)
    assert torch.allclose(dearer, trained - shift, atol=1e-6)


def test_equal_q_values_choose_the_cheapest():
    a = agent()
    nn.init.zeros_(a.decoder.weight)
    nn.init.zeros_(a.decoder.bias)
    assert (a(0, FEATURES, torch.zeros(3, 5), torch.full((3,), 0.1)).option == 1).all()
