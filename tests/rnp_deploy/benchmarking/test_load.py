"""Load by a simulated clock: schedules, queues whose waits are known, stalls, and the search for a rate."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from rnp_deploy.benchmarking import load as load_module
from rnp_deploy.benchmarking.load import (
    highest_qps,
    measure_load,
    poisson_arrivals,
    run_offline,
    run_server,
    warm_up,
)
from rnp_deploy.errors import InputError
from simulated_clock import SimulatedClock

IMAGES = np.arange(7, dtype=np.float32)[:, None, None, None]  # the value is the row


class Fake:
    """Takes ``base_ms`` a run and ``image_ms`` more for each image; ``stalls`` holds run → further ms."""

    def __init__(self, clock, base_ms=0.0, image_ms=0.0, stalls=()):
        self.clock, self.base_ms, self.image_ms, self.stalls = clock, base_ms, image_ms, dict(stalls)
        self.batches = []

    def __call__(self, images):
        self.clock.spend_ms(
            self.base_ms + self.image_ms * len(images) + self.stalls.get(len(self.batches), 0)
        )
        self.batches.append(images[:, 0, 0, 0].astype(int).tolist())
        return SimpleNamespace(options=np.stack([images[:, 0, 0, 0] + 1] * 2, axis=1).astype(np.int64))


def serve(qps, *, base_ms=0.0, image_ms=0.0, stalls=(), **arguments):
    clock = SimulatedClock()
    fake = Fake(clock, base_ms, image_ms, stalls)
    arguments = {"contender": "x", "seconds": 10, "most_batch": 1, "seed": 1} | arguments
    return run_server(fake, IMAGES, qps=qps, clock=clock, **arguments), fake


def test_gaps_are_exponential_and_the_first_is_before_the_first_request():
    due = poisson_arrivals(200, 100, seed=3)
    gaps = np.diff(due, prepend=0) / 1e9
    assert due.dtype == np.int64
    assert due[0] > 0
    assert due[-1] < 100e9
    assert len(due) == pytest.approx(20_000, rel=0.03)
    assert gaps.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 200, rel=0.03)
    for share in (0.1, 0.5, 0.9):
        assert (gaps > -np.log(share) / 200).mean() == pytest.approx(share, abs=0.01)


def test_a_seed_draws_the_same_gaps_at_every_rate():
    slow, fast = poisson_arrivals(10, 20, seed=5), poisson_arrivals(1000, 20, seed=5)
    assert len(fast) > 10_000
    np.testing.assert_allclose(slow, 100 * fast[: len(slow)], atol=200)
    assert (poisson_arrivals(10, 20, seed=5) == slow).all()
    assert (poisson_arrivals(10, 20, seed=6)[:50] != slow[:50]).any()


def test_a_schedule_goes_on_until_it_holds_enough():
    short = poisson_arrivals(1, 3, seed=2)
    assert len(short) < 10
    longer = poisson_arrivals(1, 3, seed=2, at_least=150)
    assert len(longer) == 150
    assert (longer[: len(short)] == short).all()
    assert len(poisson_arrivals(1000, 3, seed=2, at_least=150)) > 2000


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_requests_wait_as_in_a_queue_of_fixed_service_times(load):
    """M/D/1: the mean wait is load · s / (2 (1 - load))."""
    service_ms = 4.0
    (run, records), _ = serve(1000 * load / service_ms, image_ms=service_ms, seconds=80 / load)
    waits = np.array([r.latency_ms for r in records]) - service_ms
    assert len(records) == run.planned == run.completed > 15_000
    assert waits.mean() == pytest.approx(load * service_ms / (2 * (1 - load)), rel=0.08)
    assert waits.min() == pytest.approx(0, abs=1e-5)
    assert run.latency.mean_ms == pytest.approx(waits.mean() + service_ms)
    assert run.completed_qps == pytest.approx(run.offered_qps, rel=0.02)
    assert (run.mean_batch, run.held, run.within_slo, run.stopped_early) == (1, None, None, False)


def test_a_stall_shows_in_all_requests_that_came_meanwhile():
    (run, records), _ = serve(100, image_ms=1, stalls={200: 500})
    latencies = [r.latency_ms for r in records]
    assert run.latency.p99.ms > 400
    assert 40 < sum(latency > 50 for latency in latencies) < 80
    sent = [latency - (r.started_ms - r.scheduled_ms) for latency, r in zip(latencies, records, strict=True)]
    assert sum(ms > 50 for ms in sent) == 1  # all that a clock would see which starts when a request is sent


def test_latencies_count_from_the_schedule():
    (run, records), _ = serve(50, image_ms=30, seed=4)
    last = records[-1]
    assert run.seconds == pytest.approx((last.scheduled_ms + last.latency_ms - records[0].scheduled_ms) / 1e3)
    assert run.completed_qps == pytest.approx(len(records) / run.seconds)
    due = poisson_arrivals(50, 10, 4, 100)
    assert [r.scheduled_ms for r in records] == pytest.approx(due / 1e6)
    free = 0.0
    for record in records:
        started = max(free, record.scheduled_ms)
        free = started + 30
        assert record.started_ms == pytest.approx(started)
        assert record.latency_ms == pytest.approx(free - record.scheduled_ms)


def test_an_idle_worker_takes_one_and_a_busy_one_what_has_come_oldest_first():
    (run, records), fake = serve(20, base_ms=0.5, most_batch=8)
    assert run.mean_batch == pytest.approx(1, abs=0.03)
    (run, records), fake = serve(150, base_ms=20, image_ms=1, most_batch=8, seconds=4)
    sizes = [len(batch) for batch in fake.batches]
    assert max(sizes) == 8
    assert min(sizes) == 1
    assert run.mean_batch == pytest.approx(np.mean(sizes))
    assert run.completed == run.planned == sum(sizes)
    assert all(a.started_ms <= b.started_ms for a, b in pairwise(records))
    assert all(r.started_ms >= r.scheduled_ms for r in records)
    started = np.array([r.started_ms for r in records])
    due = np.array([r.scheduled_ms for r in records])
    for moment in np.unique(started):
        together = started == moment
        waiting = (due <= moment) & (started >= moment)
        assert together.sum() == min(waiting.sum(), 8)
        assert {records[i].batch for i in np.flatnonzero(together)} == {together.sum()}


def test_images_come_in_an_order_of_the_seed_again_and_again():
    (_, records), fake = serve(50, image_ms=5, most_batch=3)
    rows = [row for batch in fake.batches for row in batch]
    assert sorted(rows[:7]) == list(range(7))
    assert rows[:7] != list(range(7))
    assert rows[7:14] == rows[:7]
    assert [r.first_image for r in records] == rows
    assert [r.options for r in records] == [(row + 1, row + 1) for row in rows]
    orders = [[r.first_image for r in serve(50, image_ms=5, seed=seed)[0].records][:7] for seed in (1, 2)]
    assert orders[0] == rows[:7] != orders[1]


def test_what_has_no_options_is_recorded_without():
    clock = SimulatedClock()
    run, records = run_server(
        lambda images: clock.spend_ms(1), IMAGES, contender="dense", qps=50, seconds=1, most_batch=1, seed=0,
        clock=clock,
    )  # fmt: skip
    assert {(r.contender, r.options) for r in records} == {("dense", None)}
    assert run.contender == "dense"


def test_a_rate_that_holds_is_run_to_the_end():
    (run, _), _ = serve(100, image_ms=4, slo_ms=50)
    assert (run.held, run.stopped_early, run.completed, run.slo_ms) == (True, False, run.planned, 50)
    assert run.within_slo > 0.99


def test_one_in_a_hundred_may_be_late_and_no_more():
    late = {40 * n: 20.0 for n in range(1, 6)}
    (run, records), _ = serve(1, image_ms=5, seconds=500, stalls=dict(list(late.items())[:4]), slo_ms=20)
    assert (run.planned // 100, sum(r.latency_ms > 20 for r in records)) == (5, 4)
    assert (run.held, run.within_slo) == (True, 1 - 4 / run.planned)
    further = late | {300: 20.0}
    (run, records), _ = serve(1, image_ms=5, seconds=500, stalls=late, slo_ms=20)
    assert (run.held, sum(r.latency_ms > 20 for r in records)) == (True, 5)
    (run, records), _ = serve(1, image_ms=5, seconds=500, stalls=further, slo_ms=20)
    assert (run.held, run.stopped_early, run.completed) == (False, True, 301)
    assert run.within_slo == (301 - 6) / run.planned


def test_the_last_answer_may_break_it():
    planned = len(poisson_arrivals(1, 3, 1, 100))
    (run, _), _ = serve(1, image_ms=5, seconds=3, stalls={10: 20, planned - 1: 20}, slo_ms=20)
    assert (run.planned, run.completed, run.held, run.stopped_early) == (100, 100, False, False)
    assert run.within_slo == 0.98


def test_those_that_still_wait_too_long_count_before_they_are_sent():
    (run, records), fake = serve(700, image_ms=1, slo_ms=20, seed=2, stalls={50: 300})
    assert (run.stopped_early, len(fake.batches), run.completed) == (True, 51, 51)
    assert sum(r.latency_ms > 20 for r in records) == 1 < run.planned // 100
    assert run.within_slo == 50 / run.planned


def test_above_capacity_it_stops_early():
    (run, _), _ = serve(400, image_ms=5, slo_ms=100, seconds=60)
    assert (run.held, run.stopped_early) == (False, True)
    assert run.completed < 0.05 * run.planned
    assert run.within_slo < 0.05
    assert run.completed_qps == pytest.approx(200, rel=0.05)


def test_without_an_slo_a_growing_queue_ends_too():
    (run, records), _ = serve(400, image_ms=5, seconds=60)
    assert (run.held, run.stopped_early) == (None, True)
    assert max(r.latency_ms for r in records) == pytest.approx(10_000, rel=0.01)
    (run, _), _ = serve(400, image_ms=5, seconds=5)
    assert (run.completed, run.stopped_early) == (run.planned, False)


def test_a_run_that_answered_none_reports_no_latency():
    clock = SimulatedClock()
    late = SimpleNamespace(now_ns=clock.now_ns, wait_until_ns=lambda moment: clock.spend_ms(10_000))
    run, records = run_server(
        Fake(clock), IMAGES, contender="x", qps=100, seconds=5, most_batch=4, slo_ms=1, seed=0, clock=late
    )
    assert (run.latency, run.completed, run.completed_qps, run.mean_batch, records) == (None, 0, 0, 0, ())
    assert (run.held, run.within_slo, run.stopped_early) == (False, 0, True)


def capacity(limit, tries):
    def measure(qps):
        tries.append(qps)
        return SimpleNamespace(held=qps <= limit)

    return measure


@pytest.mark.parametrize("limit", [13.0, 99.0, 101.0, 770.0, 3100.0])
def test_the_search_comes_within_5_percent(limit):
    tries = []
    runs, highest = highest_qps(capacity(limit, tries), 100.0)
    assert limit / 1.05 <= highest <= limit
    assert highest in tries
    assert [run.held for run in runs] == [qps <= limit for qps in tries]
    assert len(set(tries)) <= 12


def test_a_rate_that_fails_once_is_tried_again():
    tries = []

    def measure(qps):
        tries.append(qps)
        return SimpleNamespace(held=qps <= 150.0 and len(tries) != 1)

    runs, highest = highest_qps(measure, 100.0)
    assert tries[:4] == [100.0, 100.0, 200.0, 200.0]
    assert [run.held for run in runs[:4]] == [False, True, False, False]
    assert 150 / 1.05 <= highest <= 150


def test_the_search_ends_where_nothing_holds_or_everything():
    tries = []
    runs, highest = highest_qps(capacity(0.0, tries), 80.0)
    assert (tries, highest, len(runs)) == ([80, 80, 40, 40, 20, 20, 10, 10], None, 8)
    tries = []
    runs, highest = highest_qps(capacity(1e9, tries), 80.0)
    assert (len(tries), highest) == (12, 80 * 2**11)


def test_the_search_is_cheap_and_finds_the_rate_of_a_queue():
    """M/D/1 at s = 5 ms: P(wait > 4 s) is 1 % at a load of about 0.56."""
    clock = SimulatedClock()
    fake = Fake(clock, image_ms=5)

    def measure(qps):
        arguments = {"contender": "x", "seconds": 60, "most_batch": 1, "seed": 0, "clock": clock}
        return run_server(fake, IMAGES, qps=qps, slo_ms=25, **arguments).run

    _, highest = highest_qps(measure, 200.0)
    assert 104 < highest < 120


def test_offline_runs_whole_batches_for_as_long():
    clock = SimulatedClock()
    fake = Fake(clock, base_ms=6, image_ms=1, stalls={2: 30})
    run, records = run_offline(fake, IMAGES, contender="x", batch=4, seconds=0.5, seed=3, clock=clock)
    assert clock.now_ns() == 1_500_000_000
    assert (run.offered_qps, run.planned, run.completed, run.mean_batch) == (None, 47 * 4, 47 * 4, 4)
    assert run.seconds == 0.5
    assert run.completed_qps == pytest.approx(47 * 4 / 0.5)
    assert (run.latency.runs, run.latency.p50.ms) == (47, pytest.approx(10))
    assert run.latency.quantiles_ms[-1] == pytest.approx(40)
    rows = [row for batch in fake.batches for row in batch]
    assert sorted(rows[:7]) == list(range(7))
    assert rows[:7] != list(range(7))
    assert rows[7:14] == rows[:7]
    assert [r.first_image for r in records] == [batch[0] for batch in fake.batches]
    assert [r.started_ms for r in records[:4]] == pytest.approx([0, 10, 20, 60])
    assert {(r.batch, r.contender, r.scheduled_ms) for r in records} == {(4, "x", None)}


def test_every_batch_size_is_warmed_up_on_images_in_turn():
    fake = Fake(SimulatedClock())
    warm_up(fake, IMAGES, range(1, 4))
    assert [len(batch) for batch in fake.batches] == [1, 1, 2, 2, 3, 3]
    assert [row for batch in fake.batches for row in batch] == [i % 7 for i in range(12)]


def load(contenders, **arguments):
    """``contenders``: name → ms of a run, ms of an image."""
    clock = SimulatedClock()
    fakes = {name: Fake(clock, *ms) for name, ms in contenders.items()}
    arguments = {"scenario": "server", "seconds": 5, "most_batch": 4, "seed": 1} | arguments
    report, records = measure_load(fakes, IMAGES, clock=clock, **arguments)
    return report, records, fakes


def test_all_contenders_meet_the_same_load_warmed_up():
    told = []
    report, records, fakes = load(
        {"dense": (9, 1), "controller": (4, 1)}, qps=50, slo_ms=200,
        progress=lambda task, done, total: told.append((done, total)),
    )  # fmt: skip
    assert [run.contender for run in report.runs] == ["dense", "controller"]
    assert (report.scenario, report.most_batch, report.seed, report.slo_ms) == ("server", 4, 1, 200)
    assert {(run.planned, run.offered_qps, run.held) for run in report.runs} == {
        (report.runs[0].planned, 50, True)
    }
    of = {name: [r for r in records if r.contender == name] for name in fakes}
    assert [(r.scheduled_ms, r.first_image) for r in of["dense"]] == [
        (r.scheduled_ms, r.first_image) for r in of["controller"]
    ]
    assert report.runs[0].latency.mean_ms > report.runs[1].latency.mean_ms + 4
    for fake in fakes.values():
        assert [len(batch) for batch in fake.batches[:8]] == [1, 1, 2, 2, 3, 3, 4, 4]
        assert {len(batch) for batch in fake.batches[8:28]} == {1}
    assert report.highest_qps == {}
    assert told == [(0, 2), (1, 2), (1, 2), (2, 2), (2, 2)]


def test_without_a_rate_the_highest_is_searched_for_each():
    told = []
    report, records, _ = load(
        {"dense": (10, 0), "controller": (5, 0), "too slow": (70, 0)}, slo_ms=60, seconds=30, most_batch=1,
        progress=lambda task, done, total: told.append((done, total)),
    )  # fmt: skip
    assert list(report.highest_qps) == ["dense", "controller", "too slow"]
    assert 55 < report.highest_qps["dense"] < 75
    assert 150 < report.highest_qps["controller"] < 180
    assert report.highest_qps["too slow"] is None
    assert report.runs[0].offered_qps == pytest.approx(100)
    by = {(run.contender, run.offered_qps): run for run in report.runs}
    assert len(report.runs) == len(by) + sum(not run.held for run in by.values())  # tried again
    assert all(by[name, qps].held for name, qps in report.highest_qps.items() if qps)
    assert {r.contender for r in records} == {"dense", "controller"}
    for name in ("dense", "controller"):
        kept = [r for r in records if r.contender == name]
        assert len(kept) == by[name, report.highest_qps[name]].planned
    assert told[0] == (0, 72)
    assert told[-1] == (72, 72)
    assert (1, 72) in told
    assert (25, 72) in told


def test_batches_raise_the_rate_that_holds():
    one, many = (
        load({"x": (10, 1)}, slo_ms=100, seconds=20, most_batch=most)[0].highest_qps["x"] for most in (1, 8)
    )
    assert 70 < one < 91
    assert many > 3 * one


def test_offline_all_contenders_run_the_same_batches():
    report, records, fakes = load({"dense": (9, 1), "controller": (4, 1)}, scenario="offline")
    assert [run.contender for run in report.runs] == ["dense", "controller"]
    assert [run.completed_qps for run in report.runs] == pytest.approx([4 / 0.013, 4 / 0.008], rel=0.01)
    assert fakes["dense"].batches[28:40] == fakes["controller"].batches[28:40]
    assert (report.scenario, report.highest_qps, len(report.runs)) == ("offline", {}, 2)
    assert {r.contender for r in records} == {"dense", "controller"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"qps": 0}, "qps is 0; pass a number above 0"),
        ({"qps": -3.0}, "qps is -3"),
        ({"qps": float("nan")}, "qps is nan"),
        ({"qps": float("inf")}, "qps is inf"),
        ({"qps": 1e9}, "more than ten million"),
        ({"qps": 10, "seconds": 0}, "seconds is 0"),
        ({"qps": 10, "most_batch": 0}, "most_batch is 0"),
        ({"qps": 10, "slo_ms": -1}, "slo_ms is -1"),
        ({}, "needs a rate, qps, or an SLO"),
        ({"slo_ms": 4.5}, "no rate keeps an SLO of 4.5 ms: one image alone takes 5 ms at p50 (quick"),
        ({"qps": 1, "slo_ms": 4.5}, "no rate keeps"),
        ({"scenario": "offline", "qps": 3}, "leave them out"),
        ({"scenario": "offline", "slo_ms": 3}, "leave them out"),
        (
            {"scenario": "multi-stream", "qps": 3},
            "'multi-stream'; use 'single-stream', 'server' or 'offline'",
        ),
    ],
)
def test_bad_input(bad, words):
    with pytest.raises(InputError) as caught:
        load({"dense": (9, 0), "quick": (4, 1)}, **bad)
    assert words in str(caught.value)


def test_no_images():
    with pytest.raises(InputError, match="no images"):
        measure_load({"x": lambda images: None}, IMAGES[:0], scenario="offline")


@pytest.mark.parametrize(
    ("scenario", "most", "sizes"),
    [("offline", 500, [1, 500]), ("server", 5, [1, 2, 3, 4, 5]), ("server", 1000, None)],
)
def test_few_batch_sizes_are_warmed_up_and_only_those_that_occur(monkeypatch, scenario, most, sizes):
    warmed = []
    monkeypatch.setattr(load_module, "warm_up", lambda run, images, sizes: warmed.append(list(sizes)))
    load({"x": (1, 0)}, scenario=scenario, qps=None if scenario == "offline" else 10.0, most_batch=most)
    assert warmed == [sizes] if sizes else (warmed[0][0], warmed[0][-1], len(warmed[0])) == (1, 1000, 16)


def test_run_server_checks_its_own():
    for bad in ({"most_batch": 0}, {"slo_ms": 0.0}, {"seconds": -1}):
        with pytest.raises(InputError, match=next(iter(bad))):
            serve(10, **bad)
    with pytest.raises(InputError, match="batch"):
        run_offline(lambda images: None, IMAGES, contender="x", batch=0, seconds=1, seed=0)
