"""The curve is measured round by round, over a clock that only computing moves."""

from __future__ import annotations

import numpy as np
import pytest

from bundles import PricedMachine, small_manifest
from rnp_deploy import Controller
from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.errors import InputError
from rnp_deploy.latency_calibration import default_penalties, measure_latency_curve
from rnp_deploy.price_scale import PriceScale
from rnp_deploy.pruning_settings import PENALTY_RANGE

IMAGES = np.arange(7, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 2, 2), np.float32)


@pytest.fixture
def machine():
    return PricedMachine()


def measured(machine, images=IMAGES, **changed):
    settings = {"penalties": (0.0, 0.35, 0.9), "duration_s": 0.0, "min_runs": 35, **changed}
    with Controller(small_manifest(), machine.open) as controller:
        return measure_latency_curve(controller, images, clock=machine.clock, **settings)


def test_points_are_percentiles_and_shares_over_the_images(machine):
    curve = measured(machine, data="digits:test", threads=3)
    assert (curve.batch, curve.threads, curve.data, curve.images, curve.runs) == (1, 3, "digits:test", 7, 35)
    assert curve.environment["threads"] == 3
    assert {"rnp_deploy", "processor", "cores"} <= set(curve.environment)
    assert [(p.penalty, p.p50_ms, p.p95_ms) for p in curve.points] == [
        (0.0, 3.0, 3.0), (0.35, 1.0, 3.0), (0.9, 1.0, 1.0),
    ]  # fmt: skip
    full, cheap = 1222, 1111
    shares = [1.0, (3 * full + 4 * cheap) / 7 / full, cheap / full]
    assert [p.macs_share for p in curve.points] == pytest.approx(shares)


def test_penalties_take_turns_on_one_batch_and_every_engine_is_open_before(machine):
    measured(machine, min_runs=20)
    timed = machine.runs[-60:]
    assert max(machine.opened_at) <= 3 * 7
    for i in range(20):
        ids, prices = zip(*timed[3 * i : 3 * i + 3], strict=True)
        assert ids == ([i % 7],) * 3
        assert sorted(prices) == [0.0, 0.35, 0.9]


def test_of_many_batches_the_first_are_timed_and_no_other_is_run(machine):
    images = np.arange(70, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 2, 2), np.float32)
    assert measured(machine, images=images, batch=2).images == 64
    assert {i for ids, _ in machine.runs for i in ids} == set(range(64))


def test_a_batch_is_timed_whole_and_a_short_one_left_out(machine):
    curve = measured(machine, batch=3, min_runs=20)
    assert (curve.batch, curve.images, curve.runs) == (3, 6, 20)
    assert curve.points[0].p50_ms == 9.0
    assert all(len(ids) == 3 for ids, _ in machine.runs[-60:])


def test_it_goes_on_for_the_time_asked_for_and_tells_how_far_it_is(machine):
    reports = []
    curve = measured(machine, duration_s=1.0, min_runs=20, progress=lambda *report: reports.append(report))
    assert 1000 <= curve.runs * 6 < 1400  # rounds of 5 to 7 ms
    assert reports[-1][1:] == (100, 100)
    assert [task for task, done, total in reports if done == total] == [
        "deciding, penalties",
        "warming up, batches",
        "timing, percent",
    ]


def calibrated(penalties):
    points = tuple(
        CalibrationPoint(penalty=p, accuracy=0.9, macs_share=0.5, option_counts=((1,),)) for p in penalties
    )
    return Calibration(data="any", samples=1, backbone_accuracy=0.9, full_accuracy=0.9, points=points)


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (5, 5), (12, 12), (13, 12), (40, 12)])
def test_calibrated_penalties_are_thinned_and_keep_their_ends(count, kept):
    penalties = [0.1 * i for i in range(count)]
    manifest = small_manifest().model_copy(update={"calibration": calibrated(penalties)})
    chosen = default_penalties(manifest)
    assert len(chosen) == kept
    assert (chosen[0], chosen[-1]) == (penalties[0], penalties[-1])
    assert set(chosen) <= set(penalties)


@pytest.mark.parametrize("penalty_range", [None, (-0.1, 5.0)])
def test_without_a_calibration_penalties_are_even_on_the_scale(penalty_range):
    manifest = small_manifest()
    agent = manifest.agent.model_copy(update={"penalty_range": penalty_range})
    chosen = default_penalties(manifest.model_copy(update={"agent": agent}))
    scale = PriceScale(*(penalty_range or PENALTY_RANGE))
    assert [scale.position(penalty) for penalty in chosen] == pytest.approx(np.linspace(0, 1, 12))


def test_the_default_penalties_are_measured(machine):
    curve = measured(machine, penalties=None, min_runs=20)
    assert tuple(point.penalty for point in curve.points) == default_penalties(small_manifest())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": 8}, "7 images do not fill a batch of 8"),
        ({"batch": 0}, "batch of 0"),
        ({"images": np.zeros((), np.float32)}, "0 images"),
        ({"min_runs": 19}, "a p95 needs 20 runs or more, not 19"),
        ({"penalties": ()}, "one or more finite numbers that rise"),
        ({"penalties": (0.2, 0.1)}, "that rise"),
        ({"penalties": (0.2, 0.2)}, "that rise"),
        ({"penalties": (0.2, float("nan"))}, "finite"),
        ({"images": IMAGES.astype(np.float64)}, "float64"),
    ],
    ids=str,
)
def test_bad_arguments(machine, arguments, words):
    with pytest.raises(InputError, match=words):
        measured(machine, **arguments)
    assert not machine.runs
