"""Percentiles are numpy's, intervals hold what they promise, and noise is not what images differ by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnp_deploy.benchmarking.statistics import bootstrap_interval, entropy_bits, latency_report, pareto
from rnp_deploy.errors import InputError

NAMES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p99_9": 99.9}


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=60), st.integers(1, 40))
def test_percentiles_are_those_of_numpy_within_their_intervals(nanoseconds, repeats):
    latencies = np.array(nanoseconds * repeats) / 1e6
    report = latency_report(latencies)
    assert report.runs == len(latencies)
    assert report.mean_ms == pytest.approx(latencies.mean())
    for name, q in NAMES.items():
        found = getattr(report, name)
        if found is not None:
            assert found.ms == pytest.approx(np.percentile(latencies, q))
            assert found.low_ms <= found.ms * (1 + 1e-9)
            assert found.high_ms >= found.ms * (1 - 1e-9)
    assert report.quantiles_ms == pytest.approx([np.percentile(latencies, q) for q in range(101)])


@pytest.mark.parametrize(
    ("name", "fewest"), [("p50", 2), ("p90", 10), ("p95", 20), ("p99", 100), ("p99_9", 1000)]
)
def test_a_percentile_needs_a_run_beyond_it(name, fewest):
    assert getattr(latency_report(np.arange(1.0, fewest)), name) is None if fewest > 2 else True
    assert getattr(latency_report(np.arange(1.0, fewest + 1)), name) is not None


def test_one_run_has_a_mean_and_no_percentile():
    report = latency_report(np.array([3.0]))
    assert (report.runs, report.mean_ms, report.block_p50_ms) == (1, 3.0, (3.0,))
    assert (report.p50, report.cv, report.device_mean_ms) == (None, None, None)


@pytest.mark.parametrize(
    ("runs", "name", "low", "high"),
    [
        (100, "p50", 40, 61),  # as tabulated for the median
        (10, "p50", 2, 9),
        (2, "p50", 1, 2),
        (100, "p90", 84, 96),
        (100, "p99", 97, 100),  # no run lies beyond the rank that would be its end
        (10_000, "p99_9", 9983, 9997),
    ],
)
def test_the_ends_of_intervals_are_known_ranks(runs, name, low, high):
    latencies = np.random.default_rng(0).permutation(np.arange(1.0, runs + 1))
    found = getattr(latency_report(latencies), name)
    assert (found.low_ms, found.high_ms) == (low, high)


@pytest.mark.parametrize(
    ("name", "runs"), [("p50", 30), ("p50", 301), ("p90", 100), ("p95", 400), ("p99", 1000)]
)
def test_intervals_cover_the_true_percentile(name, runs):
    rng = np.random.default_rng(5)
    truth = -np.log(1 - NAMES[name] / 100)  # of the exponential distribution
    found = [getattr(latency_report(row), name) for row in rng.exponential(size=(600, runs))]
    covered = np.mean([interval.low_ms <= truth <= interval.high_ms for interval in found])
    assert 0.93 <= covered <= 0.985


def test_many_runs_do_not_underflow():
    found = latency_report(np.arange(100_000.0)).p99_9
    assert found is not None
    assert 99_870 < found.low_ms < 99_900 < found.high_ms < 99_930


def test_variation_ignores_what_images_differ_by():
    batch_of = np.arange(600) % 3
    steady = np.array([1.0, 10.0, 100.0])[batch_of]
    assert latency_report(steady, batch_of).cv == pytest.approx(0.0, abs=1e-12)
    assert latency_report(steady).cv > 1
    noise = 1 + 0.1 * np.random.default_rng(0).standard_normal(600)
    assert latency_report(steady * noise, batch_of).cv == pytest.approx(0.1, rel=0.1)


def test_variation_does_not_shrink_with_few_runs_of_each_batch():
    noise = 1 + 0.1 * np.random.default_rng(0).standard_normal(2000)
    assert latency_report(noise, np.arange(2000) // 2).cv == pytest.approx(0.1, rel=0.06)


def test_variation_is_of_batches_that_ran_twice():
    assert latency_report(np.array([1.0, 2.0, 3.0]), np.array([4, 5, 6])).cv is None
    with_one_more = latency_report(np.array([1.0, 3.0, 50.0]), np.array([0, 0, 1]))
    assert with_one_more.cv == latency_report(np.array([1.0, 3.0])).cv == pytest.approx(np.sqrt(2) / 2)
    assert latency_report(np.zeros(4)).cv is None
    assert latency_report(np.array([1.0, 1.0, 4.0])).cv == pytest.approx(np.sqrt(3) / 2)  # ÷ the mean, 2


def test_blocks_are_in_order_of_time():
    assert latency_report(np.repeat(np.arange(1.0, 11), 7)).block_p50_ms == tuple(np.arange(1.0, 11))
    assert latency_report(np.arange(1.0, 6)).block_p50_ms == (2.0, 4.5)


def test_the_device_has_a_mean_of_its_own():
    assert latency_report(np.array([5.0, 6.0]), device_ms=np.array([1.0, 2.0])).device_mean_ms == 1.5


def test_nothing_timed_is_an_error():
    with pytest.raises(InputError, match="nothing was timed"):
        latency_report(np.array([]))
    with pytest.raises(InputError, match="no values"):
        bootstrap_interval(np.array([]), np.mean, seed=0)


def test_bootstrap_of_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(1).standard_normal(400) * 2 + 5
    low, high = bootstrap_interval(values, np.mean, seed=3)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.02)
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.12)
    assert (low, high) == bootstrap_interval(values, np.mean, seed=3)
    assert (low, high) != bootstrap_interval(values, np.mean, seed=4)


def test_bootstrap_keeps_rows_together():
    pairs = np.arange(20.0)[:, None] * [1.0, -1.0]
    assert bootstrap_interval(pairs, lambda drawn: float(drawn.sum()), seed=0, draws=50) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("counts", "bits"),
    [([4, 4], 1.0), ([1, 1, 1, 1], 2.0), ([9, 0, 0], 0.0), ([0, 0], 0.0), ([3, 1], 0.811278)],
)
def test_entropy(counts, bits):
    assert entropy_bits(counts) == pytest.approx(bits, abs=1e-6)
    assert entropy_bits(np.array(counts)) >= 0


POINTS = st.lists(st.tuples(*[st.integers(0, 5).map(float)] * 2), max_size=8)


@given(POINTS)
def test_what_is_marked_is_beaten_by_nothing_and_the_rest_by_something_marked(points):
    marks = pareto(points)
    front = [point for point, marked in zip(points, marks, strict=True) if marked]
    for (cost, gain), marked in zip(points, marks, strict=True):
        beaten = [(c, g) for c, g in front if c <= cost and g >= gain and (c, g) != (cost, gain)]
        assert bool(beaten) != marked


def test_equal_points_do_not_beat_each_other():
    assert pareto([(1.0, 0.5), (1.0, 0.5), (1.0, 0.4), (2.0, 0.5), (0.5, 0.1)]) == [
        True,
        True,
        False,
        False,
        True,
    ]
