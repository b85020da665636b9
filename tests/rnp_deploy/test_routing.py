"""Rows of a batch go to their branches and come back, whatever the branches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnp_deploy.routing import RoutedTensor, rows_by_options

batches = st.integers(1, 12)


@st.composite
def partitioned(draw):
    """A batch of distinct rows, routed in random parts that are put in random order."""
    batch = draw(batches)
    part_of_row = np.array(draw(st.lists(st.integers(0, 3), min_size=batch, max_size=batch)))
    values = np.arange(batch * 6, dtype=np.float32).reshape(batch, 2, 3)
    routed = RoutedTensor(batch)
    for part in draw(st.permutations(range(4))):
        rows = np.flatnonzero(part_of_row == part)
        if draw(st.booleans()):
            rows = rows[::-1].copy()
        if len(rows):
            routed.put(rows, values[rows])
    return routed, values


@given(case=partitioned(), data=st.data())
def test_take_gives_each_sample_its_own_row_in_the_order_asked_for(case, data):
    routed, values = case
    rows = np.array(
        data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=2 * len(values)))
    )
    taken = routed.take(rows)
    assert taken.dtype == values.dtype
    assert np.array_equal(taken, values[rows])


@given(case=partitioned())
def test_taking_every_row_gives_the_whole_batch(case):
    routed, values = case
    assert np.array_equal(routed.take(np.arange(len(values))), values)


@pytest.mark.parametrize("rows", [[4, 0, 2], [4, 0], [0, 2], [2]], ids=str)
def test_neighbours_of_one_array_are_not_copied(rows):
    array = np.arange(6.0).reshape(3, 2)
    routed = RoutedTensor(5)
    routed.put(np.array([4, 0, 2]), array)
    routed.put(np.array([1, 3]), -array[:2])
    taken = routed.take(np.array(rows))
    assert np.shares_memory(taken, array)
    assert taken.flags.c_contiguous
    assert taken.tolist() == [array[[4, 0, 2].index(row)].tolist() for row in rows]


@pytest.mark.parametrize("rows", [[0, 2, 4], [4, 2], [4, 0, 1]], ids=["other order", "a gap", "other array"])
def test_rows_from_here_and_there_are_a_copy(rows):
    array = np.arange(6.0).reshape(3, 2)
    routed = RoutedTensor(5)
    routed.put(np.array([4, 0, 2]), array)
    routed.put(np.array([1, 3]), -array[:2])
    taken = routed.take(np.array(rows))
    assert not np.shares_memory(taken, array)
    assert taken[rows.index(4)].tolist() == [0, 1]


def test_parts_may_differ_in_width_if_never_taken_together():
    routed = RoutedTensor(3)
    routed.put(np.array([0, 2]), np.ones((2, 4)))
    routed.put(np.array([1]), np.full((1, 7), 2.0))
    assert routed.take(np.array([2])).shape == (1, 4)
    assert routed.take(np.array([1])).shape == (1, 7)


@given(data=st.data(), batch=batches, decisions=st.integers(0, 3))
def test_rows_by_options_covers_every_row_once_with_its_own_options(data, batch, decisions):
    row = st.lists(st.integers(1, 3), min_size=decisions, max_size=decisions)
    options = np.array(data.draw(st.lists(row, min_size=batch, max_size=batch)), np.int64).reshape(
        batch, decisions
    )
    groups = list(rows_by_options(options))
    seen = np.concatenate([rows for rows, _ in groups])
    assert sorted(seen.tolist()) == list(range(batch))
    assert (
        len({common for _, common in groups}) == len(groups) == len({tuple(row) for row in options.tolist()})
    )
    for rows, common in groups:
        assert rows.tolist() == sorted(rows.tolist())
        assert (options[rows] == np.array(common, np.int64)).all()
        assert all(type(option) is int for option in common)
