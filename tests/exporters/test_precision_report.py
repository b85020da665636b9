"""The report on what a precision changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.errors import VerificationError
from rnp_deploy.exporters import export_bundle, precision_report
from tiny_training import tiny_data, tiny_network


def test_the_report_counts_what_it_says(narrow):
    network, _, manifest = narrow("chain")
    report = manifest.precision_report
    assert (report.data, report.images, len(report.penalties)) == (None, 16, 6)
    assert report.decisions == 16 * 6 * len(network.decisions)
    assert 0.9 * report.decisions <= report.decisions_equal <= report.decisions
    assert 0 < report.drift_median <= report.drift_p99 < report.margin_median
    assert 0 < report.output_drift_mean <= report.output_drift_max < 1e-2
    assert report.accuracy is report.accuracy_fp32 is None
    assert "random images" in report.lines()[0]


def test_prices_are_where_decisions_differ():
    network = tiny_network()
    assert precision_report._prices(network, None) == pytest.approx(
        (-0.02, -0.000366, 0.0172, 0.1, 0.1324, 1.0), rel=1e-2
    )
    points = [
        CalibrationPoint(penalty=price, accuracy=0.5, macs_share=share, option_counts=())
        for price, share in ((-0.02, 0.9), (0.2, 0.9), (0.3, 0.1), (1.0, 0.1))
    ]
    curve = Calibration(data="d", samples=1, backbone_accuracy=0.5, full_accuracy=0.5, points=tuple(points))
    wanted = (-0.02, 0.06, 0.1, 0.14, 0.22, 1.0)  # a line from 0.9 at -0.02 to 0.1 at 0.3
    assert precision_report._prices(network, curve) == pytest.approx(wanted)
    assert precision_report._prices(tiny_network(penalty_range=None), curve) == (0.1,)


def test_a_report_on_labelled_images(tmp_path):
    manifest = export_bundle(
        tiny_network(), tmp_path / "bundle", precision="fp16", data=tiny_data(), verify=1
    )
    report = manifest.precision_report
    assert (report.data, report.images) == ("digits", 60)
    assert 0 <= report.accuracy <= 1
    assert abs(report.accuracy - report.accuracy_fp32) <= 0.05
    assert tuple(at.penalty for at in report.by_penalty) == report.penalties
    for name, total in (("accuracy", report.accuracy), ("accuracy_fp32", report.accuracy_fp32),
                        ("decisions_equal", report.decisions_equal / report.decisions)):  # fmt: skip
        assert np.mean([getattr(at, name) for at in report.by_penalty]) == pytest.approx(total)
    worst = min(report.by_penalty, key=lambda at: at.decisions_equal)
    assert f"fewest at {worst.penalty:.3g}, {100 * worst.decisions_equal:.2f} %" in report.lines()[0]
    assert "held-out" in report.lines()[0]
    assert "points" in report.lines()[-1]


@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_an_image_that_gives_no_numbers_is_named(precision, tmp_path):
    data = tiny_data()
    images = data.test.images.copy()
    images[41] = 3e38  # its sums are beyond float32 too
    data = dataclasses.replace(data, test=dataclasses.replace(data.test, images=images))
    words = rf"held-out image of digits, row 41 gives .* not finite at penalty -0\.02, in {precision}"
    with pytest.raises(VerificationError, match=words):
        export_bundle(tiny_network(), tmp_path / "bundle", precision=precision, data=data, verify=1)
    assert list(tmp_path.iterdir()) == []


def test_fp32_has_no_report(exported):
    manifest = open_bundle(exported("chain").path).manifest
    assert (manifest.precision, manifest.precision_report) == ("fp32", None)
