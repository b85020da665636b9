"""The agent: one shared cell, linear Q-values, a price that shifts them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rnp_deploy.errors import InputError
from rnp_deploy.network.agent import Agent, PenaltyScale
from rnp_deploy.pruning_settings import PENALTY_RANGE


def agent(penalty_range=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Agent([8, 16], [4, 4], state_size=5, penalty=0.1, penalty_range=penalty_range)


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


def test_the_scale_is_its_own_inverse_and_rises_from_zero_to_one():
    scale = PenaltyScale(*PENALTY_RANGE)
    positions = torch.linspace(0, 1, 21)
    penalties = scale.penalty(positions)
    assert (penalties.diff() > 0).all()
    torch.testing.assert_close(penalties[[0, -1]], torch.tensor(PENALTY_RANGE), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(scale.position(penalties), positions, atol=1e-5, rtol=0)
    torch.testing.assert_close(scale.position(torch.tensor([-3.0, 9.0])), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    "low_high", [(0.5, 0.1), (0.1, 0.1), (float("nan"), 0.5), (-2.0, -1.0), (0.0, float("inf"))]
)
def test_a_range_that_is_none_is_refused(low_high):
    with pytest.raises(InputError, match="two rising numbers"):
        PenaltyScale(*low_high)


def test_a_conditioned_agent_sees_the_price_and_takes_the_immediate_one_off():
    a = agent(PENALTY_RANGE)
    prices, state = torch.tensor([0.0, 0.1, 0.4]), torch.zeros(3, 5)
    assert a.encoders[0].in_features == 8 + 1
    q_values = a(0, FEATURES[:1].expand(3, -1), state, prices).q_values
    learnt = q_values + prices[:, None] * torch.arange(4)
    assert (learnt[0] - learnt[1]).abs().max() > 1e-5
    assert (learnt[1] - learnt[2]).abs().max() > 1e-5
    with torch.no_grad():
        a.encoders[0].weight[:, -1] = 0
    blind = a(0, FEATURES[:1].expand(3, -1), state, prices).q_values + prices[:, None] * torch.arange(4)
    torch.testing.assert_close(blind[0], blind[2])


@pytest.mark.parametrize("penalty_range", [None, PENALTY_RANGE])
def test_an_untrained_agent_takes_all_groups_at_its_own_penalty(penalty_range):
    a = agent(penalty_range)
    assert (a(0, FEATURES, torch.zeros(3, 5), torch.full((3,), 0.1)).option == 4).all()
