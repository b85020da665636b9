"""Plots: PNG files, the same of the same points."""

import dataclasses
import sys

import pytest

from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.errors import MissingRuntimeError
from rnp_deploy.training.baselines import AGENT, FIXED, BaselinePoint
from rnp_deploy.training.plots import baselines_png, calibration_png

CURVE = Calibration(
    data="digits:test",
    samples=60,
    backbone_accuracy=0.95,
    full_accuracy=0.9,
    points=tuple(
        CalibrationPoint(penalty=p, accuracy=a, macs_share=s, option_counts=((30, 30),))
        for p, a, s in ((-0.02, 0.9, 1.0), (0.05, 0.8, 0.6), (0.5, 0.5, 0.3))
    ),
)
POINTS = (
    BaselinePoint(AGENT, 0.1, 0.6, 0.8),
    BaselinePoint(AGENT, 0.5, 0.3, 0.5),
    BaselinePoint(FIXED, 1, 0.3, 0.4),
)


def test_the_same_points_are_the_same_bytes_and_others_are_others() -> None:
    other = CURVE.model_copy(update={"full_accuracy": 0.7})
    more = (*POINTS, dataclasses.replace(POINTS[2], setting=2, macs_share=1.0, accuracy=0.9))
    for draw, one, another in (
        (calibration_png, (CURVE,), (other,)),
        (baselines_png, (POINTS, "digits"), (more, "digits")),
    ):
        plot = draw(*one)
        assert plot.startswith(b"\x89PNG\r\n\x1a\n")
        assert plot.endswith(b"IEND\xaeB`\x82")
        assert b"Software" not in plot
        assert draw(*one) == plot
        assert draw(*another) != plot


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingRuntimeError, match=r"matplotlib.*pip install rnp-deploy\[train\]"):
        calibration_png(CURVE)
