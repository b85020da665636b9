"""Widths of options, and which settings a convolution gets."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from rnp_deploy.pruning_settings import PruningSettings, option_widths

groups = st.integers(2, 16)
units = st.integers(1, 12)
aligns = st.sampled_from([1, 2, 4, 8, 16, 32])


@given(groups, units, units, aligns)
def test_widths_rise_to_all_channels_in_whole_units(groups, units_per_group, unit, align):
    channels = groups * units_per_group * unit
    widths = option_widths(channels, groups, unit, align)
    assume(widths is not None)
    assert len(widths) == groups
    assert widths[-1] == channels
    assert all(a < b for a, b in zip((0, *widths), widths, strict=False))
    assert all(width % unit == 0 for width in widths)
    assert all(width >= channels * j / groups for j, width in enumerate(widths, 1))


@given(groups, st.integers(1, 64), aligns)
def test_widths_are_aligned_where_a_group_is_as_wide(groups, per_group, align):
    widths = option_widths(groups * per_group, groups, align=align)
    assert widths is not None
    if per_group >= align:
        assert all(width % align == 0 for width in widths[:-1])
    else:
        assert widths == tuple(per_group * j for j in range(1, groups + 1))


@given(groups, st.integers(1, 1024), units, aligns)
def test_there_are_none_where_channels_do_not_divide(groups, channels, unit, align):
    assume(channels % groups)
    assert option_widths(channels, groups, unit, align) is None


@pytest.mark.parametrize(
    ("arguments", "widths"),
    [
        ((64, 4), (16, 32, 48, 64)),
        ((48, 4), (16, 24, 40, 48)),
        ((16, 4), (4, 8, 12, 16)),
        ((48, 4, 1, 1), (12, 24, 36, 48)),
        ((48, 4, 6), (12, 24, 36, 48)),
        ((36, 2, 12, 8), (24, 36)),
        ((8, 8), (1, 2, 3, 4, 5, 6, 7, 8)),
        ((8, 4, 4), None),
        ((10, 4), None),
    ],
)
def test_widths_by_hand(arguments, widths):
    assert option_widths(*arguments) == widths


@pytest.mark.parametrize(
    ("conv", "groups"),
    [("layer1.0.conv1", 2), ("layer1.1.conv2", 8), ("layer2.0.conv1", 4), ("Layer1.0.conv1", 4)],
)
def test_the_first_override_that_matches_counts(conv, groups):
    settings = PruningSettings(overrides={"layer1.0.*": 2, "layer1.*": 8, "layer1.0.conv1": 16})
    assert settings.groups_of(conv) == groups


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"groups": 1}, "greater than or equal to 2"),
        ({"groups": 4.0}, "valid integer"),
        ({"overrides": {"*": 1}}, "greater than or equal to 2"),
        ({"align": 0}, "greater than or equal to 1"),
        ({"granularity": "layer"}, "'conv' or 'block'"),
        ({"min_macs_share": 1.0}, "less than 1"),
        ({"min_macs_share": -0.1}, "greater than or equal to 0"),
        ({"group": 2}, "not permitted"),
    ],
)
def test_bad_settings_are_refused(arguments, words):
    with pytest.raises(ValidationError, match=words):
        PruningSettings(**arguments)
