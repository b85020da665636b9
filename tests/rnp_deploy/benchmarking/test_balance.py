"""A sweep of the penalty over engines whose decisions and latencies are known, and the balance drawn from it."""

from __future__ import annotations

import numpy as np
import pytest

from bundles import PricedMachine, small_manifest
from rnp_deploy import Controller
from rnp_deploy.benchmarking.balance import balance_of
from rnp_deploy.benchmarking.measures import Energy
from rnp_deploy.benchmarking.penalty_sweep import sweep_penalties
from rnp_deploy.benchmarking.statistics import bootstrap_interval
from rnp_deploy.errors import InputError
from rnp_deploy.latency_calibration import latency_curve_of

FULL, CHEAP = 1222, 1111
PENALTIES = (0.0, 0.35, 0.9)


def images_of(count):
    return np.arange(count, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 2, 2), np.float32)


def swept(count=7, *, dense_ms=None, penalties=PENALTIES, **changed):
    machine = PricedMachine()

    def dense(i, part):
        assert part[0, 0, 0, 0] == i * settings["batch"]
        machine.clock.spend_ms(dense_ms)
        return np.eye(3, dtype=np.float32)[part[:, 0, 0, 0].astype(int) % 3]

    settings = {"batch": 1, "duration_s": 0.0, "min_runs": 35, **changed}
    with Controller(small_manifest(), machine.open) as controller:
        return sweep_penalties(
            controller,
            images_of(count),
            penalties,
            dense=None if dense_ms is None else dense,
            clock=machine.clock,
            **settings,
        )


def test_a_sweep_holds_the_runs_and_decisions_of_every_penalty():
    sweep = swept(dense_ms=4.0)
    assert tuple(sweep.penalties) == PENALTIES
    middle = sweep.penalties[0.35]
    assert middle.timed.latencies_ms.tolist() == [1.0, 1.0, 1.0, 1.0, 3.0, 3.0, 3.0] * 5
    assert middle.predicted.tolist() == [1, 1, 1, 1, 2, 2, 2]
    assert middle.macs_share == pytest.approx(np.array([CHEAP] * 4 + [FULL] * 3) / FULL)
    assert sweep.dense.timed.latencies_ms.tolist() == [4.0] * 35
    assert sweep.dense.predicted.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert swept().dense is None


def test_all_images_are_decided_and_the_first_whole_batches_timed():
    sweep = swept(100, batch=3, dense_ms=1.0)
    assert [part[0, 0, 0, 0] for part in sweep.parts] == list(range(0, 96, 3))
    assert {len(part) for part in sweep.parts} == {3}
    assert {len(runs.predicted) for runs in (*sweep.penalties.values(), sweep.dense)} == {100}
    assert set(sweep.dense.timed.batch_of) == set(range(32))
    assert len(swept(7, batch=3).parts) == 2
    assert len(swept(7, batch=7).parts) == 1


def test_rounds_go_by_the_limits_and_the_seed():
    for sweep in (swept(min_runs=41), swept(min_runs=1, duration_s=0.1, penalties=(0.0, 0.9))):
        runs = {len(at_price.timed.latencies_ms) for at_price in sweep.penalties.values()}
        assert runs <= {41, 50}  # rounds of 4 ms, 0.2 s in all
    starts = [swept(seed=seed).penalties[0.9].timed.started_ms.tolist() for seed in (0, 0, 3)]
    assert starts[0] == starts[1] != starts[2]


def test_a_curve_is_had_from_a_sweep_of_more_images_than_were_timed():
    sweep = swept(40, penalties=(0.35, 3.0), min_runs=32)
    curve = latency_curve_of(sweep, threads=2, data="any")
    assert (curve.images, curve.batch, curve.runs, curve.threads, curve.data) == (32, 1, 32, 2, "any")
    assert curve.points[0].macs_share == pytest.approx((4 * CHEAP + 28 * FULL) / 32 / FULL)
    assert (curve.points[1].p50_ms, curve.points[1].p95_ms) == (
        1.0,
        pytest.approx(1.9),
    )  # two of 32 take 3 ms
    with pytest.raises(InputError, match="a p95 needs 20 runs or more, not 19"):
        latency_curve_of(swept(min_runs=19), threads=None, data="any")


LABELS = np.array([1, 1, 1, 1, 2, 2, 1])  # what penalty 0.35 predicts, but for the last


def test_points_have_accuracy_macs_and_latency_with_intervals():
    balance = balance_of(swept(dense_ms=4.0), LABELS, seed=3)
    assert [point.penalty for point in balance.points] == list(PENALTIES)
    assert [point.accuracy for point in balance.points] == pytest.approx([2 / 7, 6 / 7, 5 / 7])
    assert [point.macs_share for point in balance.points] == pytest.approx(
        [1.0, (4 * CHEAP + 3 * FULL) / 7 / FULL, CHEAP / FULL]
    )
    assert [point.p50.ms for point in balance.points] == [3.0, 1.0, 1.0]
    assert [point.p95_ms for point in balance.points] == [3.0, 3.0, 1.0]
    assert {(point.p99, point.runs) for point in balance.points} == {(None, 35)}
    middle = balance.points[1]
    right = np.array([1.0, 1, 1, 1, 1, 1, 0])
    assert (middle.accuracy_low, middle.accuracy_high) == bootstrap_interval(right, np.mean, seed=3)
    shares = np.array([CHEAP] * 4 + [FULL] * 3) / FULL
    assert (middle.macs_share_low, middle.macs_share_high) == bootstrap_interval(shares, np.mean, seed=3)
    assert (balance.dense_p50_ms, balance.dense_accuracy) == (4.0, pytest.approx(2 / 7))


def test_intervals_go_by_the_seed():
    sweep, labels = swept(60, penalties=(2.0,)), np.arange(60) % 3
    points = [balance_of(sweep, labels, seed=seed).points[0] for seed in (0, 0, 3)]
    accuracies = [(point.accuracy_low, point.accuracy_high) for point in points]
    shares = [(point.macs_share_low, point.macs_share_high) for point in points]
    assert accuracies[0] == accuracies[1] != accuracies[2]
    assert shares[0] == shares[1] != shares[2]


def test_a_penalty_that_another_beats_is_not_marked():
    assert [point.pareto for point in balance_of(swept(), LABELS).points] == [False, True, False]
    assert [point.pareto for point in balance_of(swept(), np.full(7, 2)).points] == [True, True, False]
    assert [point.pareto for point in balance_of(swept(), np.zeros(7)).points] == [False, True, True]


def test_without_labels_there_is_no_accuracy_and_no_mark():
    balance = balance_of(swept(dense_ms=4.0))
    for point in balance.points:
        assert (point.accuracy, point.accuracy_low, point.accuracy_high, point.pareto) == (None,) * 4
    assert (balance.dense_accuracy, balance.dense_p50_ms) == (None, 4.0)
    assert balance_of(swept()).dense_p50_ms is None


def test_energy_is_measured_of_every_penalty_over_the_timed_batches():
    sweep, asked = swept(), []

    def energy(contender, parts):
        asked.append((contender, parts))
        return Energy(joules_per_image=float(len(asked)))

    points = balance_of(sweep, energy=energy).points
    assert [point.energy.joules_per_image for point in points] == [1.0, 2.0, 3.0]
    assert asked == [(runs.contender, sweep.parts) for runs in sweep.penalties.values()]
    assert "not asked for" in balance_of(sweep).points[0].energy.reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": 8}, "7 images do not fill a batch of 8"),
        ({"batch": 0}, "batch of 0"),
        ({"penalties": ()}, "one or more finite numbers that rise"),
        ({"penalties": (0.2, 0.1)}, "that rise"),
        ({"penalties": (0.2, float("inf"))}, "finite"),
    ],
    ids=str,
)
def test_sweeps_that_cannot_be(arguments, words):
    with pytest.raises(InputError, match=words):
        swept(**arguments)


def test_balances_that_cannot_be():
    with pytest.raises(InputError, match=r"labels of shape \(6,\) for 7 images"):
        balance_of(swept(), LABELS[:6])
    with pytest.raises(InputError, match="a median needs 2 or more"):
        balance_of(swept(min_runs=1))
