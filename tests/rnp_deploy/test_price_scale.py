"""The scale without torch is the agent's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rnp_deploy.errors import InputError
from rnp_deploy.network.agent import PenaltyScale
from rnp_deploy.price_scale import PriceScale

RANGES = [(-0.02, 1.0), (0.0, 0.5), (-3.0, 2.0), (0.5, 5.0)]


@pytest.mark.parametrize("low_high", RANGES, ids=str)
def test_it_is_the_agents(low_high):
    ours, agents = PriceScale(*low_high), PenaltyScale(*low_high)
    positions = np.linspace(0, 1, 21)
    prices = agents.penalty(torch.tensor(positions)).tolist()
    assert [ours.penalty(p) for p in positions] == pytest.approx(prices, rel=1e-6, abs=1e-9)
    assert [ours.position(p) for p in prices] == pytest.approx(positions, abs=1e-9)
    assert [ours.position(p) for p in (low_high[0] - 1, low_high[1] + 1)] == [0.0, 1.0]


@pytest.mark.parametrize("low_high", RANGES, ids=str)
def test_the_ends_are_exact(low_high):
    scale = PriceScale(*low_high)
    assert (scale.penalty(0.0), scale.penalty(1.0)) == low_high
    assert (scale.penalty(-1.0), scale.penalty(2.0)) == low_high
    assert [scale.position(price) for price in low_high] == [0.0, 1.0]


def test_it_turns_from_linear_to_logarithmic_at_a_200th_of_its_end():
    assert PriceScale(0.0, 2.0).position(0.01) == pytest.approx(math.asinh(1) / math.asinh(200))


@pytest.mark.parametrize("low_high", [(0.5, 0.1), (0.1, 0.1), (-1.0, 0.0), (math.nan, 1.0), (0.0, math.inf)])
def test_what_is_no_range_is_refused(low_high):
    with pytest.raises(InputError, match="pass two rising numbers"):
        PriceScale(*low_high)
