"""Curves are made to fall, and read backwards."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnp_deploy.falling_curve import isotonic_fall, penalty_at_most

VALUES = st.lists(st.floats(0.1, 100), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("values", "fitted"),
    [
        ([3.0], [3.0]),
        ([3.0, 2.0, 1.0], [3.0, 2.0, 1.0]),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
        ([5.0, 2.0, 4.0, 1.0], [5.0, 3.0, 3.0, 1.0]),
        ([4.0, 1.0, 3.0, 5.0], [4.0, 3.0, 3.0, 3.0]),
    ],
)
def test_neighbours_that_rise_become_their_mean(values, fitted):
    assert isotonic_fall(values) == fitted


@given(VALUES, st.integers(0, 2**32 - 1))
def test_no_falling_curve_is_nearer(values, seed):
    fitted = isotonic_fall(values)
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(fitted))
    assert sum(fitted) == pytest.approx(sum(values))
    others = -np.sort(-np.random.default_rng(seed).uniform(0, 100, (50, len(values))))
    nearest = ((others - values) ** 2).sum(axis=1).min()
    assert ((np.array(fitted) - values) ** 2).sum() <= nearest + 1e-6


@pytest.mark.parametrize(
    ("target", "penalty"),
    [(9.0, 0.0), (8.0, 0.0), (6.0, 0.5), (4.0, 1.0), (3.0, 2.5), (2.0, 3.0), (1.9, None)],
)
def test_the_lowest_penalty_lies_between_points_and_after_a_flat(target, penalty):
    assert penalty_at_most([(0.0, 8.0), (1.0, 4.0), (2.0, 4.0), (3.0, 2.0)], target) == penalty


@given(VALUES, st.floats(0.1, 100), st.floats(0.1, 100))
def test_a_lower_target_never_takes_a_lower_penalty(values, a, b):
    curve = list(enumerate(isotonic_fall(values)))
    low, high = (penalty_at_most(curve, target) for target in sorted((a, b)))
    assert low is None or (high is not None and 0 <= high <= low <= len(values))
