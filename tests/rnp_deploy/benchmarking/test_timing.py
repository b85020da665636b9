"""Contenders of known cost, by a clock that only they move."""

from __future__ import annotations

import gc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnp_deploy.benchmarking.timing import timed_in_turns
from simulated_clock import SimulatedClock

PARTS = [np.full((2, 1), i, np.float32) for i in range(3)]


class Bench:
    """Contenders whose runs cost what a function of the clock's ms, the batch and the number of runs so far says."""

    def __init__(self):
        self.clock = SimulatedClock()
        self.began_ns = self.clock.now
        self.runs = []  # (name, batch)

    def contender(self, name, cost_ms):
        def run(i, part):
            assert (part == i % len(PARTS)).all()
            self.clock.spend_ms(cost_ms(i) if callable(cost_ms) else cost_ms)
            self.runs.append((name, i))

        return run

    def elapsed_s(self):
        return (self.clock.now - self.began_ns) / 1e9

    def timed(self, costs, parts=PARTS, **changed):
        settings = {"duration_s": 0.0, "min_runs": 7, "warm_up_s": 0.0, **changed}
        contenders = {name: self.contender(name, cost) for name, cost in costs.items()}
        return timed_in_turns(contenders, parts, clock=self.clock, **settings)


def test_latencies_batches_and_starts_are_of_each_run():
    bench = Bench()
    measured = bench.timed({"a": 2.0, "b": lambda i: 10.0 + i})
    a, b = measured.timed["a"], measured.timed["b"]
    assert a.latencies_ms.tolist() == [2.0] * 7
    assert b.latencies_ms.tolist() == [10.0, 11.0, 12.0, 10.0, 11.0, 12.0, 10.0]
    assert a.batch_of.tolist() == b.batch_of.tolist() == [0, 1, 2, 0, 1, 2, 0]
    begins = np.cumsum([0, *(b.latencies_ms + 2.0)])[:-1]
    assert np.minimum(a.started_ms, b.started_ms) == pytest.approx(begins)
    assert np.maximum(a.started_ms, b.started_ms) == pytest.approx(
        begins + np.where(a.started_ms < b.started_ms, 2.0, b.latencies_ms)
    )
    assert a.device_ms is None


def test_all_are_warm_on_all_batches_before_the_first_round():
    bench = Bench()
    bench.timed({"a": 1.0, "b": 1.0})
    assert bench.runs[:6] == [(name, i) for i in range(3) for name in "ab"]


def test_a_round_is_every_contender_once_on_one_batch():
    bench = Bench()
    bench.timed({"a": 1.0, "b": 1.0, "c": 1.0}, min_runs=50)
    rounds = [bench.runs[i : i + 3] for i in range(9, len(bench.runs), 3)]
    for done in rounds:
        assert sorted(name for name, _ in done) == ["a", "b", "c"]
        assert len({i for _, i in done}) == 1


def test_every_order_comes_about_as_often_on_every_batch():
    bench = Bench()
    bench.timed({"a": 1.0, "b": 1.0, "c": 1.0}, min_runs=1800)
    rounds = [bench.runs[i : i + 3] for i in range(9, len(bench.runs), 3)]
    orders = Counter((tuple(name for name, _ in done), done[0][1]) for done in rounds)
    assert len(orders) == 6 * len(PARTS)
    assert all(70 <= count <= 135 for count in orders.values())


def test_orders_go_by_the_seed():
    orders = []
    for seed in (1, 1, 2):
        bench = Bench()
        bench.timed({"a": 1.0, "b": 1.0}, seed=seed, min_runs=40)
        orders.append(bench.runs)
    assert orders[0] == orders[1] != orders[2]


def test_it_stops_when_there_are_runs_enough_and_time_enough():
    costs = {"a": 1.0, "b": 3.0}
    assert len(Bench().timed(costs, min_runs=100).timed["a"].latencies_ms) == 100
    assert len(Bench().timed(costs, min_runs=100, duration_s=0.1).timed["a"].latencies_ms) == 100
    for timed in Bench().timed(costs, min_runs=1, duration_s=0.5).timed.values():
        assert len(timed.latencies_ms) == 250  # 4 ms a round, 1 s in all


def test_few_batches_are_warm_up_enough_where_all_is_steady_from_the_start():
    measured = Bench().timed({"a": 1.0}, parts=PARTS[:1])
    assert measured.stable
    assert measured.warm_up_s == pytest.approx(0.011)  # once, and two windows of five


def test_warm_up_takes_the_time_asked_for():
    measured = Bench().timed({"a": 1.0, "b": 1.0}, warm_up_s=0.3)
    assert measured.stable
    assert measured.warm_up_s == pytest.approx(0.306)


def test_warm_up_goes_on_until_rounds_take_the_same_time():
    bench = Bench()

    def cost_ms(i):  # falls for a second, then stays
        return max(1.0, 200.0 - 200.0 * bench.elapsed_s())

    measured = bench.timed({"a": cost_ms})
    assert measured.stable
    assert 0.99 < measured.warm_up_s < 1.03
    assert measured.timed["a"].latencies_ms.tolist() == [1.0] * 7


def test_slow_rounds_get_the_ten_that_show_whether_they_are_stable():
    measured = Bench().timed({"a": 2000.0, "b": 1000.0}, warm_up_s=0.2)
    assert measured.stable
    assert measured.warm_up_s == pytest.approx(39.0)  # every batch once, and ten rounds


@pytest.mark.parametrize(("warm_up_s", "most_s"), [(0.2, 10.0), (3.0, 30.0)])
def test_what_never_becomes_stable_is_timed_after_a_while(warm_up_s, most_s):
    bench = Bench()
    measured = bench.timed({"a": lambda i: 1.02 ** len(bench.runs)}, warm_up_s=warm_up_s)
    assert not measured.stable
    assert most_s <= measured.warm_up_s < 1.2 * most_s
    assert len(measured.timed["a"].latencies_ms) == 7


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=9))
def test_batches_that_differ_are_stable(costs):
    bench = Bench()
    parts = [np.full((1, 1), i % len(PARTS), np.float32) for i in range(len(costs))]
    assert bench.timed({"a": lambda i: costs[i]}, parts=parts).warm_up_s == pytest.approx(
        (sum(costs) + 2 * sum(costs[i % len(costs)] for i in range(5))) / 1e3
    )


def test_the_device_is_timed_beside_and_its_calls_are_not_in_the_wall_time():
    bench, started = Bench(), []

    def device_timer():
        bench.clock.spend_ms(100.0)
        started.append(bench.clock.now)

        def stop():
            device_ms = (bench.clock.now - started[-1]) / 1e6 / 2
            bench.clock.spend_ms(100.0)
            return device_ms

        return stop

    timed = bench.timed({"a": 2.0, "b": lambda i: 3.0 + i}, device_timer=device_timer).timed
    assert timed["a"].latencies_ms.tolist() == [2.0] * 7
    assert timed["a"].device_ms.tolist() == [1.0] * 7
    assert timed["b"].device_ms.tolist() == (timed["b"].latencies_ms / 2).tolist()


def test_progress_is_told_of_the_warm_up_and_of_every_percent_once():
    told = []
    Bench().timed({"a": 1.0}, min_runs=3, duration_s=0.25, progress=lambda *report: told.append(report))
    assert told[:3] == [("warming up, batches", i, 3) for i in (1, 2, 3)]
    assert {task for task, _, _ in told[3:]} == {"timing, percent"}
    percents = [done for _, done, _ in told[3:]]
    assert percents == sorted(set(percents))
    assert percents[-1] == 100


def test_the_collector_leaves_what_was_there_alone_and_is_given_back():
    frozen = []
    timed_in_turns(
        {"one": lambda i, part: frozen.append(gc.get_freeze_count())},
        [np.zeros(1, np.float32)],
        duration_s=0.0,
        min_runs=1,
        warm_up_s=0.0,
    )
    assert frozen[-1] > 1000
    assert gc.get_freeze_count() == 0
    assert gc.isenabled()
