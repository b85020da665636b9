"""Which engines are worth opening beforehand, by the calibration."""

from __future__ import annotations

import pytest

from bundles import small_manifest
from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.errors import InputError
from rnp_deploy.plan import Piece, Plan, plan_of_bundle
from rnp_deploy.preloading import common_files, files_by_use
from small_network import AGENT, fused_plan

ALWAYS = ["s0/full.onnx", *AGENT]


def calibrated(*points):
    """The small manifest, with these (penalty, counts of each decision's options)."""
    made = tuple(
        CalibrationPoint(penalty=penalty, accuracy=0.9, macs_share=0.5, option_counts=counts)
        for penalty, counts in points
    )
    accuracies = {"backbone_accuracy": 0.9, "full_accuracy": 0.9}
    calibration = Calibration(data="any:test", samples=100, points=made, **accuracies)
    return small_manifest().model_copy(update={"calibration": calibration})


def uses(manifest):
    return files_by_use(plan_of_bundle(manifest), manifest)


def test_without_a_calibration_every_option_is_as_likely():
    shares = uses(small_manifest())
    assert shares == dict.fromkeys(ALWAYS, 1.0) | dict.fromkeys(["s1/1.onnx", "s1/2.onnx"], 0.5) | {
        f"s2/{a}-{b}.onnx": 0.25 for a in (1, 2) for b in (1, 2)
    }
    assert list(shares)[:3] == ["s0/full.onnx", "agent/0.onnx", "agent/1.onnx"]


def test_shares_are_products_of_those_of_the_decisions_the_most_used_first():
    shares = uses(calibrated((0.25, ((80, 20), (25, 75)))))
    assert shares == pytest.approx(
        dict.fromkeys(ALWAYS, 1.0)
        | {"s1/1.onnx": 0.8, "s1/2.onnx": 0.2, "s2/1-1.onnx": 0.2, "s2/1-2.onnx": 0.6}
        | {"s2/2-1.onnx": 0.05, "s2/2-2.onnx": 0.15}
    )
    assert list(shares)[3:5] == ["s1/1.onnx", "s2/1-2.onnx"]
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_the_point_nearest_to_the_agents_penalty_counts():
    """The agent's is 0.25."""
    low, near, high = ((100, 0), (50, 50)), ((10, 90), (50, 50)), ((0, 100), (50, 50))
    assert uses(calibrated((0.0, low), (0.3, near), (0.9, high)))["s1/1.onnx"] == pytest.approx(0.1)


def test_a_fused_plan_is_counted_likewise():
    manifest = calibrated((0.25, ((80, 20), (25, 75))))
    shares = files_by_use(fused_plan(), manifest)
    assert not set(AGENT) & set(shares)
    assert shares == {file: share for file, share in uses(manifest).items() if file not in AGENT}


def test_a_file_of_several_pieces_is_used_as_much_as_the_most_used():
    manifest = calibrated((0.25, ((30, 70), (50, 50))))
    plan = plan_of_bundle(manifest)
    pieces = tuple(Piece(options=(o,), file="both.onnx", macs=1, weight_bytes=1) for o in (1, 2))
    steps = tuple(
        step.model_copy(update={"pieces": pieces}) if step.option_decisions == (0,) else step
        for step in plan.steps
    )
    assert files_by_use(Plan(tensors=plan.tensors, steps=steps), manifest)["both.onnx"] == pytest.approx(0.7)


@pytest.mark.parametrize("counts", [((1, 2, 3), (4, 5)), ((1, 2),), ((1, 2), (3, 4), (5, 6))])
def test_counts_of_another_network_say_nothing(counts):
    assert uses(calibrated((0.25, counts))) == uses(small_manifest())


def test_no_samples_are_no_uses():
    assert uses(calibrated((0.25, ((0, 0), (0, 0)))))["s1/1.onnx"] == 0


def test_common_is_what_one_image_in_a_hundred_takes():
    manifest = calibrated((0.25, ((99, 1), (1991, 9))))
    common = common_files(plan_of_bundle(manifest), manifest)
    assert common == [*ALWAYS, "s1/1.onnx", "s2/1-1.onnx", "s1/2.onnx"]


def test_nothing_tells_what_is_common_without_a_calibration():
    with pytest.raises(InputError, match=r"needs a calibration.*rnp-train.*'none' or 'all'"):
        common_files(plan_of_bundle(small_manifest()), small_manifest())
