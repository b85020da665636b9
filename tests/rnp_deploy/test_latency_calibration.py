"""The curve is measured round by round, over a clock that only computing moves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bundles import small_manifest
from rnp_deploy import Controller, profiling
from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.engines.fake import FakeEngine
from rnp_deploy.errors import InputError
from rnp_deploy.latency_calibration import default_penalties, measure_latency_curve
from rnp_deploy.price_scale import PriceScale
from rnp_deploy.pruning_settings import PENALTY_RANGE

IMAGES = np.arange(7, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 2, 2), np.float32)


class Machine:
    """A small bundle's engines: image i takes option 2 while the price is at most i / 10; that costs 3 ms, else 1 ms."""

    def __init__(self):
        self.now_ms = 0.0
        self.opened_at = []
        self.runs = []  # (images, price) of every run

    def perf_counter(self):
        return self.now_ms / 1e3

    def perf_counter_ns(self):
        return round(self.now_ms * 1e6)

    def open(self, path):
        self.opened_at.append(len(self.runs))
        folder, name = path.removesuffix(".onnx").split("/")
        return FakeEngine(lambda feeds: getattr(self, folder)(name, feeds))

    def agent(self, name, feeds):
        ids = feeds["features"][:, 0]
        if name == "0":
            self.runs.append((ids.tolist(), round(float(feeds["penalty"][0]), 6)))
        option = np.where(feeds["penalty"] <= ids / 10 + 1e-6, 2, 1).astype(np.int64)
        return {
            "q_values": np.zeros((len(ids), 2), np.float32),
            "option": option,
            "next_state": feeds["state"],
        }

    def s0(self, name, feeds):
        x0 = np.repeat(feeds["images"], 2, axis=1)
        return {"x0": x0, "f0": x0[:, :, 0, 0].copy()}

    def s1(self, name, feeds):
        self.now_ms += len(feeds["x0"]) * {"1": 1.0, "2": 3.0}[name]
        f1 = np.repeat(feeds["x0"][:, :1, 0, 0], 4, axis=1)
        return {"x1": np.zeros((len(f1), 2 * int(name), 2, 2), np.float32), "f1": f1}

    def s2(self, name, feeds):
        return {"outputs": np.zeros((len(feeds["x0"]), 3), np.float32)}


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    clock = SimpleNamespace(perf_counter=machine.perf_counter, perf_counter_ns=machine.perf_counter_ns)
    monkeypatch.setattr(profiling, "time", clock)
    return machine


def measured(machine, images=IMAGES, **changed):
    settings = {"penalties": (0.0, 0.35, 0.9), "duration_s": 0.0, "min_runs": 35, **changed}
    with Controller(small_manifest(), machine.open) as controller:
        return measure_latency_curve(controller, images, **settings)


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
    assert len(machine.runs) == 3 * 7 + 60
    assert max(machine.opened_at) <= 3 * 7
    for i in range(20):
        ids, prices = zip(*timed[3 * i : 3 * i + 3], strict=True)
        assert ids == ([i % 7],) * 3
        assert prices == ((0.0, 0.35, 0.9) if i % 2 == 0 else (0.9, 0.35, 0.0))


def test_a_batch_is_timed_whole_and_a_short_one_left_out(machine):
    curve = measured(machine, batch=3, min_runs=20)
    assert (curve.batch, curve.images, curve.runs) == (3, 6, 20)
    assert curve.points[0].p50_ms == 9.0
    assert all(len(ids) == 3 for ids, _ in machine.runs)


def test_it_goes_on_for_the_time_asked_for_and_tells_how_far_it_is(machine):
    reports = []
    curve = measured(machine, duration_s=1.0, min_runs=20, progress=lambda *report: reports.append(report))
    assert 1000 <= curve.runs * 6 < 1400  # rounds of 5 to 7 ms
    assert reports[-1][1:] == (100, 100)
    assert [done for _, done, _ in reports] == sorted({done for _, done, _ in reports})


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
        ({"min_runs": 19}, "min_runs is 19; a p95 needs 20"),
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
