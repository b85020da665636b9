"""Comparisons of simulated measurements whose difference is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rnp_deploy.benchmarking.compare import compare_reports
from rnp_deploy.benchmarking.measures import Percentile
from rnp_deploy.benchmarking.report import RANDOM_STAMP
from rnp_deploy.errors import InputError
from timed_reports import timed_report


def measured(seed, factor=1.0, *, runs=1000, drift=0.02, noise=0.06, machine=1.0, **changes):
    """A dense network of 10 ms and a controller of 5 ms times a factor, on a machine whose speed wanders.

    Every run has noise of its own, one in 50 takes twice as long; the speed is shared, since they take turns.
    """
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.standard_normal(runs)) / math.sqrt(runs)
    speed = machine * np.exp(drift * walk)
    latencies = {
        name: ms * speed * np.exp(noise * rng.standard_normal(runs)) * np.where(rng.random(runs) < 0.02, 2, 1)
        for name, ms in (("dense", 10.0), ("controller", 5.0 * factor))
    }
    return timed_report(latencies, **changes)


def change(a, b, name="controller", **arguments):
    comparison = compare_reports(a, b, **arguments)
    return next(one for one in comparison.contenders if one.name == name)


def verdicts(factor, **arguments):
    return [
        change(measured(2 * seed, **arguments), measured(2 * seed + 1, factor, **arguments)).p50.verdict
        for seed in range(100)
    ]


def test_two_measurements_of_one_machine_are_the_same():
    assert verdicts(1.0).count("same") >= 95


def test_a_noisy_machine_makes_none_slower_or_faster():
    found = verdicts(1.0, noise=0.3, drift=0.08, runs=200)
    assert sum(verdict in ("same", "undecided") for verdict in found) >= 95


def test_a_slow_down_of_25_percent_is_found():
    assert verdicts(1.25).count("slower") >= 95


def test_a_speed_up_of_25_percent_is_found():
    assert verdicts(1 / 1.25).count("faster") >= 95


def test_a_difference_of_the_tolerance_is_left_undecided():
    found = verdicts(1.1)
    assert found.count("undecided") > 50
    assert change(measured(1), measured(2, 1.1), tolerance=0.2).p50.verdict == "same"
    assert change(measured(1), measured(2, 1.1), tolerance=0.02).p50.verdict == "slower"


def test_relative_to_the_dense_network_a_slower_machine_is_no_difference():
    a, b = measured(1), measured(2, machine=1.5)
    assert change(a, b).p50.verdict == "slower"
    one = change(a, b, relative_to_dense=True)
    assert one.p50.verdict == "same"
    assert one.p99.low < 1 < one.p99.high
    assert one.p50.a == pytest.approx(0.5, rel=0.01)
    assert one.p50.ratio == pytest.approx(1, rel=0.02)
    assert change(a, measured(2, 1.25, machine=0.6), relative_to_dense=True).p50.verdict == "slower"


def test_relative_to_the_dense_network_drift_within_a_run_goes_away():
    a, b = measured(3, drift=0.3), measured(4, drift=0.3)
    plain, relative = (change(a, b, relative_to_dense=of).p50 for of in (False, True))
    assert relative.high - relative.low < 0.4 * (plain.high - plain.low)


def test_the_ratio_is_of_the_p50s_and_within_its_interval():
    for seed in range(20):
        a, b = measured(seed, runs=60), measured(seed + 100, runs=60)
        p50 = change(a, b).p50
        assert (p50.a, p50.b) == tuple(report.contenders[1].latency.p50.ms for report in (a, b))
        assert p50.ratio == p50.b / p50.a
        assert p50.low <= p50.ratio <= p50.high
        assert p50.low < p50.high


def test_intervals_cover_the_true_ratio():
    """Of independent runs: about 95 of 100."""
    changes = [change(measured(s, drift=0), measured(s + 500, 1.2, drift=0)) for s in range(100)]
    assert sum(one.p50.low <= 1.2 <= one.p50.high for one in changes) >= 88
    assert sum(one.p99.low <= 1.2 <= one.p99.high for one in changes) >= 90


def test_comparing_the_other_way_round_turns_the_ratio_over():
    a, b = measured(1), measured(2, 1.3)
    there, back = change(a, b), change(b, a)
    assert there.p50.ratio == pytest.approx(1 / back.p50.ratio)
    assert there.p99.low == pytest.approx(1 / back.p99.high)
    assert there.p50.low == pytest.approx(1 / back.p50.high, rel=0.01)
    assert change(a, b) == there


def with_p99(report, low_ms, ms, high_ms, index=1):
    one = report.contenders[index]
    p99 = Percentile(ms=ms, low_ms=low_ms, high_ms=high_ms)
    contenders = list(report.contenders)
    contenders[index] = one.model_copy(update={"latency": one.latency.model_copy(update={"p99": p99})})
    return report.model_copy(update={"contenders": tuple(contenders)})


def test_the_interval_of_p99_is_that_of_independent_parts():
    a, b = with_p99(measured(1), 9.0, 10.0, 13.0), with_p99(measured(2), 11.0, 12.0, 12.5)
    p99 = change(a, b).p99
    assert (p99.a, p99.b, p99.ratio) == (10, 12, 1.2)
    assert math.log(1.2 / p99.low) == pytest.approx(math.hypot(math.log(12 / 11), math.log(13 / 10)))
    assert math.log(p99.high / 1.2) == pytest.approx(math.hypot(math.log(12.5 / 12), math.log(10 / 9)))
    a, b = with_p99(a, 20.0, 20.0, 22.0, index=0), with_p99(b, 19.0, 20.0, 20.0, index=0)
    p99 = change(a, b, relative_to_dense=True).p99
    assert (p99.a, p99.b, p99.ratio) == (0.5, 0.6, 1.2)
    parts = [math.log(12 / 11), math.log(13 / 10)]
    assert math.log(1.2 / p99.low) == pytest.approx(np.linalg.norm(parts))
    parts = [math.log(12.5 / 12), math.log(10 / 9), math.log(20 / 19), math.log(22 / 20)]
    assert math.log(p99.high / 1.2) == pytest.approx(np.linalg.norm(parts))


def test_too_few_runs_are_undecided():
    one = change(measured(1, runs=9), measured(2, 3.0, runs=9))
    assert (one.p50.verdict, one.p50.low, one.p50.high, one.p99) == ("undecided", None, None, None)
    assert change(measured(1, runs=10), measured(2, 3.0, runs=10)).p50.verdict == "slower"
    assert change(measured(1, runs=1), measured(2, runs=50)).p50 is None


def test_blocks_that_do_not_match_the_dense_network_s_give_no_interval():
    a, b = measured(1), measured(2)
    dense = b.contenders[0]
    shorter = dense.latency.model_copy(update={"block_p50_ms": dense.latency.block_p50_ms[1:]})
    b = b.model_copy(
        update={"contenders": (dense.model_copy(update={"latency": shorter}), *b.contenders[1:])}
    )
    assert change(a, b, relative_to_dense=True).p50.verdict == "undecided"
    assert change(a, b).p50.verdict == "same"


def with_latency(report, **update):
    dense, one = report.contenders
    one = one.model_copy(update={"latency": one.latency.model_copy(update=update)})
    return report.model_copy(update={"contenders": (dense, one)})


def test_a_ratio_beside_its_blocks_widens_the_interval():
    a, b = (with_latency(measured(seed), block_p50_ms=(5.0,) * 10) for seed in (1, 2))
    for p50, end in (change(a, b).p50, "high"), (change(b, a).p50, "low"):
        assert {p50.low, p50.high} == {1.0, p50.ratio}
        assert getattr(p50, end) == p50.ratio


def test_latencies_of_0_have_no_ratio():
    nothing = Percentile(ms=0.0, low_ms=0.0, high_ms=1.0)
    one = change(measured(1), with_latency(measured(2), p50=nothing, p99=nothing))
    assert (one.p50, one.p99) == (None, None)
    low = Percentile(ms=6.0, low_ms=0.0, high_ms=7.0)
    one = change(measured(1), with_latency(measured(2), p99=low, block_p50_ms=(0.0,) * 10))
    assert (one.p50.verdict, one.p50.low, one.p99.verdict, one.p99.low) == ("undecided", None) * 2


def test_accuracy_and_macs_are_compared_where_both_have_them():
    a = measured(1, contenders={"accuracy": 0.9, "macs_share": 0.5})
    one = change(a, measured(2, contenders={"accuracy": 0.85, "macs_share": 0.75}))
    assert (one.accuracy, one.macs_share) == (pytest.approx(-0.05), 0.25)
    one = change(a, measured(2))
    assert (one.accuracy, one.macs_share) == (None, None)


def test_contenders_of_one_report_are_named():
    a = timed_report({"controller": np.ones(50), "old": np.ones(50)})
    b = timed_report({"new": np.ones(50), "controller": np.ones(50), "dense": np.ones(50)})
    comparison = compare_reports(a, b, tolerance=0.05)
    assert [(one.name, one.kind) for one in comparison.contenders] == [("controller", "controller")]
    assert (comparison.only_in_a, comparison.only_in_b) == (("old",), ("new", "dense"))
    assert (comparison.tolerance, comparison.relative_to_dense, comparison.stamp) == (0.05, False, None)


def test_relative_to_itself_the_dense_network_is_left_out():
    comparison = compare_reports(measured(1), measured(2), relative_to_dense=True)
    assert [one.name for one in comparison.contenders] == ["controller"]
    assert comparison.relative_to_dense
    assert [one.name for one in compare_reports(measured(1), measured(2)).contenders] == [
        "dense",
        "controller",
    ]


def test_what_was_measured_may_differ_and_is_named():
    a = measured(1, environment={"processor": "old", "cores": 2, "load_1m": 0.1, "gpu_temperature_c": 40})
    b = measured(
        2,
        subject={"manifest_sha256": "ef" * 32, "backend": "torch", "device": "cuda", "precision": "fp16"},
        settings={"penalty": None},
        data={"name": "elsewhere"},
        environment={"processor": "new", "cores": 2, "load_1m": 3.1, "gpu_temperature_c": 70, "gpu": "one"},
    )
    assert compare_reports(a, b).differences == (
        "manifest: abababababab in A, efefefefefef in B",
        "backend: onnxruntime in A, torch in B",
        "device: cpu in A, cuda in B",
        "precision: fp32 in A, fp16 in B",
        "penalty: 0.1 in A, None in B",
        "processor: old in A, new in B",
        "gpu: absent in A, one in B",
    )
    assert compare_reports(a, a).differences == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": {"batch": 8}}, "batch is 1 in A and 8 in B; measure both alike"),
        ({"settings": {"threads": None}}, "threads is 1 in A and None in B"),
        (
            {"data": {"sha256": "ee" * 32}},
            "the data is digits (cdcdcdcdcdcd) in A and digits (eeeeeeeeeeee) in B",
        ),
        ({"data": {"stamp": RANDOM_STAMP}}, f"the stamp is None in A and {RANDOM_STAMP} in B"),
    ],
)
def test_how_it_was_measured_has_to_agree(changes, words):
    with pytest.raises(InputError) as caught:
        compare_reports(measured(1), measured(2, **changes))
    assert words in str(caught.value)


def test_random_inputs_are_stamped():
    a, b = (measured(seed, data={"stamp": RANDOM_STAMP}) for seed in (1, 2))
    assert compare_reports(a, b).stamp == RANDOM_STAMP


@pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf])
def test_a_tolerance_is_a_share(tolerance):
    with pytest.raises(InputError, match="tolerance is"):
        compare_reports(measured(1), measured(2), tolerance=tolerance)


def test_there_must_be_something_to_compare():
    a, b = (timed_report({name: np.ones(9)}) for name in ("one", "other"))
    with pytest.raises(InputError, match="no contender is in both reports: one; and other"):
        compare_reports(a, b)
    with pytest.raises(InputError, match="report A has no dense network"):
        compare_reports(a, measured(1), relative_to_dense=True)
    with pytest.raises(InputError, match="report B has no dense network"):
        compare_reports(measured(1), a, relative_to_dense=True)
