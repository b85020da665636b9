"""From a budget of MACs to a penalty, over the calibrated curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bundles import small_manifest
from rnp_deploy import Controller
from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.engine import Arrays
from rnp_deploy.engines.fake import FakeEngine
from rnp_deploy.errors import InputError


def calibration(*curve: tuple[float, float]) -> Calibration:
    points = tuple(
        CalibrationPoint(penalty=penalty, accuracy=0.9, macs_share=share, option_counts=((1,),))
        for penalty, share in curve
    )
    return Calibration(data="any:test", samples=1, backbone_accuracy=0.9, full_accuracy=0.9, points=points)


CURVE = calibration((0.0, 0.9), (0.1, 0.5), (0.2, 0.6), (0.3, 0.3), (0.5, 0.1))


@pytest.mark.parametrize(
    ("target", "penalty"),
    [(1.0, 0.0), (0.9, 0.0), (0.7, 0.05), (0.5, 0.1), (0.4, 0.2), (0.3, 0.3), (0.2, 0.4), (0.1, 0.5)],
)
def test_a_target_lies_between_its_neighbours_and_dearer_points_are_passed_over(target, penalty):
    assert CURVE.penalty_for(target) == pytest.approx(penalty)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (0.05, "the cheapest calibrated point takes 0.1 of the full network's MACs, at penalty 0.5"),
        (0.0, "target_macs is 0.0; pass a share above 0"),
        (1.5, "at most 1"),
        (float("nan"), "target_macs is nan"),
    ],
)
def test_a_target_out_of_reach_is_refused(target, words):
    with pytest.raises(InputError, match=words):
        CURVE.penalty_for(target)


@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=8), st.floats(0.05, 1), st.floats(0.05, 1))
def test_a_smaller_budget_never_lowers_the_penalty(shares, a, b):
    curve = calibration(*((0.1 * i, share) for i, share in enumerate(shares)))
    small, large = sorted((max(a, min(shares)), max(b, min(shares))))
    assert curve.penalty_for(small) >= curve.penalty_for(large)
    assert 0 <= curve.penalty_for(small) <= 0.1 * len(shares)


def test_penalties_have_to_rise_and_the_nearest_point_is_found():
    with pytest.raises(ValidationError, match="do not rise"):
        calibration((0.2, 0.5), (0.1, 0.6))
    assert CURVE.at(0.19).macs_share == 0.6


def test_the_controller_takes_the_penalty_of_the_target():
    seen = []

    def step(feeds: Arrays) -> Arrays:
        seen.append(feeds["penalty"].tolist())
        raise InputError("far enough")

    def open_engine(path: str) -> FakeEngine:
        if path.startswith("agent"):
            return FakeEngine(step)
        n = (1, 2, 2, 2)
        return FakeEngine(lambda _: {"x0": np.zeros(n, np.float32), "f0": np.zeros((1, 2), np.float32)})

    images = np.zeros((1, 1, 2, 2), np.float32)
    with Controller(small_manifest().model_copy(update={"calibration": CURVE}), open_engine) as controller:
        with pytest.raises(InputError, match="far enough"):
            controller.run(images, target_macs=0.7)
        assert seen == [pytest.approx([0.05])]
        for beside in ({"penalty": 0.1}, {"options": [[1, 1]]}):
            with pytest.raises(InputError, match="target_macs is given beside"):
                controller.run(images, target_macs=0.7, **beside)
    with (
        Controller(small_manifest(), open_engine) as controller,
        pytest.raises(InputError, match="needs a calibration"),
    ):
        controller.run(images, target_macs=0.7)
