"""The sweep over batch sizes, on a clock that only computing moves."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rnp_deploy import Controller
from rnp_deploy.benchmarking.batch_sweep import sweep_batches
from rnp_deploy.errors import InputError
from simulated_clock import SimulatedClock

#: Milliseconds by batch size.
COSTS = {
    "regroup": {1: 10.0, 2: 18.0, 4: 20.0, 8: 30.0},
    "serial": {1: 11.0, 2: 17.0, 4: 34.0, 8: 68.0},
    "round-up": {1: 10.0, 2: 16.0, 4: 35.0, 8: 66.0},
    "dense": {1: 12.0, 2: 16.0, 4: 30.0, 8: 66.0},
}


class Costly:
    """A controller, and a dense network, that take as long as the table says."""

    def __init__(self, costs=COSTS):
        self.clock, self.costs = SimulatedClock(), costs
        self.ran: list[tuple[str, float | None, list[int]]] = []
        self.built: list[int] = []

    def run(self, images, *, penalty, policy):
        self.ran.append((policy, penalty, images.ravel().tolist()))
        self.clock.spend_ms(self.costs[policy][len(images)])
        return SimpleNamespace(outputs=images)

    def dense(self, batch):
        self.built.append(batch)

        def run(i, images):
            assert len(images) == batch
            self.run(images, penalty=None, policy="dense")

        return run

    def sweep(self, count=9, **arguments):
        images = np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1)
        settings = {"batches": (4, 1, 2, 8, 2), "dense": self.dense, "duration_s": 0.1, "min_runs": 3}
        return sweep_batches(self, images, clock=self.clock, **{**settings, **arguments})


def test_every_policy_and_the_dense_network_at_every_size():
    swept = Costly().sweep()
    assert [(point.batch, point.policy) for point in swept.points] == [
        (size, policy) for size in (1, 2, 4, 8) for policy in COSTS
    ]
    for point in swept.points:
        cost = COSTS[point.policy][point.batch]
        assert point.p50_ms == pytest.approx(cost)
        assert point.ms_per_image == pytest.approx(cost / point.batch)
        assert point.images_per_s == pytest.approx(1000 * point.batch / cost)
    runs = {point.batch: {p.runs for p in swept.points if p.batch == point.batch} for point in swept.points}
    assert all(len(counts) == 1 and counts >= {max(3, *counts)} for counts in runs.values())


def test_each_size_is_timed_for_as_long_and_as_often_as_asked():
    for duration_s, min_runs, runs in ((1.0, 3, 60), (0.0, 7, 7)):  # a round at 2 images takes 67 ms, of four
        points = Costly().sweep(count=2, batches=(2,), duration_s=duration_s, min_runs=min_runs).points
        assert {point.runs for point in points} == {runs}


def test_throughput_is_by_the_mean_and_cost_by_the_median():
    class Uneven:
        counted = 0

        def __getitem__(self, size):
            self.counted += 1
            return 10.0 if self.counted % 4 else 30.0

    point = Costly({**COSTS, "regroup": Uneven()}).sweep(batches=(2,), min_runs=400, duration_s=0).points[0]
    assert (point.p50_ms, point.ms_per_image) == (10, 5)
    assert point.images_per_s == pytest.approx(1000 * 2 / 15, rel=0.02)


def test_from_which_size_each_pays():
    pays = {(pair.policy, pair.over): pair.batch for pair in Costly().sweep().pays_from}
    assert pays == {
        ("regroup", "serial"): 4,
        ("round-up", "serial"): 8,  # not at 4, so not from 2
        ("regroup", "dense"): 4,
        ("serial", "dense"): None,
        ("round-up", "dense"): None,  # as fast is not faster
    }


def test_at_one_image_policies_are_the_same_and_do_not_compete():
    costs = {**COSTS, "regroup": {1: 1.0, 2: 1.0}, "serial": {1: 2.0, 2: 2.0}}
    pays = {(pair.policy, pair.over): pair.batch for pair in Costly(costs).sweep(batches=(1, 2)).pays_from}
    assert pays["regroup", "serial"] == 2
    assert pays["regroup", "dense"] == 1
    alone = Costly(costs).sweep(batches=(1,)).pays_from
    assert [pair.batch for pair in alone if pair.over == "serial"] == [None, None]


def test_all_run_on_the_same_full_batches_at_the_penalty():
    costly = Costly()
    costly.sweep(count=8, batches=(4,), penalty=0.5)
    assert costly.built == [4]
    for policy in COSTS:
        batches = [tuple(images) for name, _, images in costly.ran if name == policy]
        assert set(batches) == {(0, 1, 2, 3), (4, 5, 6, 7)}
    assert {penalty for policy, penalty, _ in costly.ran if policy != "dense"} == {0.5}


def test_orders_go_by_the_seed():
    orders = []
    for seed in (1, 1, 2):
        costly = Costly()
        costly.sweep(batches=(2,), min_runs=20, seed=seed)
        orders.append([policy for policy, _, _ in costly.ran])
    assert orders[0] == orders[1] != orders[2]


def test_of_many_images_the_first_64_batches_are_taken():
    costly = Costly()
    costly.sweep(count=200, batches=(1, 2))
    assert max(max(images) for _, _, images in costly.ran if len(images) == 1) == 63
    assert max(max(images) for _, _, images in costly.ran if len(images) == 2) == 127


def test_without_a_dense_network_policies_are_compared_with_each_other():
    swept = Costly().sweep(dense=None)
    assert {point.policy for point in swept.points} == {"regroup", "serial", "round-up"}
    assert [(pair.policy, pair.over) for pair in swept.pays_from] == [
        ("regroup", "serial"),
        ("round-up", "serial"),
    ]


@pytest.mark.parametrize(
    ("count", "batches", "words"),
    [
        (9, (4, 10, 16), "9 images do not fill a batch of 10, 16; pass more images, or smaller sizes"),
        (9, (), r"batch sizes are \[\]"),
        (9, (2, 0), r"batch sizes are \[2, 0\]"),
        (0, (1,), "0 images do not fill a batch of 1"),
    ],
)
def test_sizes_that_cannot_be_swept(count, batches, words):
    costly = Costly()
    with pytest.raises(InputError, match=words):
        costly.sweep(count=count, batches=batches)
    assert costly.ran == []


def test_progress_is_passed_on():
    told = []
    Costly().sweep(batches=(2, 4), progress=lambda *report: told.append(report))
    assert told.count(("timing, percent", 100, 100)) == 2


def stepping():
    """A clock that moves on by itself whenever it is read."""
    clock = SimulatedClock()

    def now_ns():
        clock.spend_ms(1)
        return clock.now

    clock.now_ns = now_ns
    return clock


def test_a_real_controller_is_swept(exported):
    case = exported("chain")
    with Controller.load(case.path, "onnxruntime", "cpu", 1) as controller:
        swept = sweep_batches(
            controller, case.images(4).numpy(), batches=(1, 4), penalty=0.05, duration_s=0.0, min_runs=2,
            clock=stepping(),
        )  # fmt: skip
    assert {point.runs for point in swept.points} == {2}
