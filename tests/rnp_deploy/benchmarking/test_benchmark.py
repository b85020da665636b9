"""What a benchmark says, apart from the times, which no test can know."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from rnp_deploy import Controller
from rnp_deploy.benchmarking import benchmark as module
from rnp_deploy.benchmarking.benchmark import benchmark
from rnp_deploy.benchmarking.cautions import warnings_of
from rnp_deploy.benchmarking.inputs import Inputs, random_inputs
from rnp_deploy.benchmarking.measures import Energy
from rnp_deploy.benchmarking.report import RANDOM_STAMP, BenchReport
from rnp_deploy.benchmarking.settings import BenchSettings
from rnp_deploy.errors import BundleError, EngineError, InputError

IMAGES = 7
QUICK = {"threads": 1, "duration_s": 0.0, "warm_up_s": 0.0, "min_runs": 10}
STATIC = [
    "dense network, one graph",
    "static graph, option 3",
    "static graph, option 2",
    "static graph, option 1",
]


@pytest.fixture(scope="module")
def path(exported):
    return exported("chain").path


@pytest.fixture(scope="module")
def images(exported):
    return exported("chain").images(IMAGES).numpy()


@pytest.fixture(scope="module")
def labels(path, images):
    """What the dense network says, but for the first."""
    with Controller.load(path) as controller:
        dense = controller.run(images, options=np.full((IMAGES, 3), 4)).outputs.argmax(axis=1)
    dense[0] = (dense[0] + 1) % 10
    return dense


@pytest.fixture(scope="module")
def decided(path, images):
    with Controller.load(path) as controller:
        return controller.run(images, penalty=-0.02)


@pytest.fixture(scope="module")
def report(path, images, labels):
    settings = BenchSettings(batch=2, penalty=-0.02, records=True, **QUICK)
    return benchmark(path, Inputs("mine", images, labels), settings, command="rnp-bench it")


def by_name(report):
    return {contender.name: contender for contender in report.contenders}


def test_the_contenders_are_the_rivals_and_the_controller_in_its_ways(report):
    names = [contender.name for contender in report.contenders]
    assert names[:4] == STATIC
    assert [name for name in names if name not in (*STATIC, "static graph nearest in MACs")] == [
        "controller",
        "controller, its decisions given",
        *(f"controller, option {j} held" for j in (4, 3, 2, 1)),
    ]
    assert {contender.latency.runs for contender in report.contenders} == {10}
    assert all(contender.latency.p90 and contender.latency.p99 is None for contender in report.contenders)


def test_shares_are_macs_over_the_dense_networks(report, path, images):
    shares = {name: contender.macs_share for name, contender in by_name(report).items()}
    with Controller.load(path) as controller:
        manifest = controller.manifest
        measured = controller.run(images[:6], penalty=-0.02).macs.mean() / manifest.macs
    for j in (1, 2, 3):
        share = manifest.path_macs([j] * 3) / manifest.macs
        assert shares[f"static graph, option {j}"] == shares[f"controller, option {j} held"] == share
    assert shares["dense network, one graph"] == shares["controller, option 4 held"] == 1.0
    assert shares["controller, its decisions given"] == pytest.approx(measured, abs=1e-9)
    agent = sum(step.macs for step in manifest.agent.steps) / manifest.macs
    assert shares["controller"] == pytest.approx(measured + agent, abs=1e-9)
    assert (report.subject.macs, report.subject.agent_macs) == (manifest.macs, round(agent * manifest.macs))


def test_one_graph_is_the_nearest_in_macs(report, decided, path):
    (nearest,) = (contender for contender in report.contenders if contender.nearest)
    mean = decided.macs[:6].mean() / report.subject.macs
    static = [c for c in report.contenders if c.kind in ("dense", "static", "nearest")]
    assert abs(nearest.macs_share - mean) == min(abs(contender.macs_share - mean) for contender in static)


def test_speed_up_and_efficiency_follow_from_what_is_typical(report):
    dense = report.contenders[0].latency
    for contender in report.contenders:
        assert contender.speedup == pytest.approx(dense.typical_ms / contender.latency.typical_ms)
        assert contender.efficiency == pytest.approx(contender.speedup * contender.macs_share)
        assert contender.images_per_s == pytest.approx(2000 / contender.latency.mean_ms)


def test_decisions_are_of_all_images_a_last_short_batch_too(report, decided):
    expected = tuple(tuple(int((column == j).sum()) for j in (1, 2, 3, 4)) for column in decided.options.T)
    assert report.decisions.counts == expected
    assert all(sum(row) == IMAGES for row in report.decisions.counts)


def test_every_contender_has_its_accuracy(report, decided, labels, path, images):
    accuracies = {name: contender.accuracy for name, contender in by_name(report).items()}
    assert accuracies["dense network, one graph"] == pytest.approx((IMAGES - 1) / IMAGES)
    for name in ("controller", "controller, its decisions given"):
        assert accuracies[name] == pytest.approx((decided.outputs.argmax(axis=1) == labels).mean())
    with Controller.load(path) as controller:
        least = controller.run(images, options=np.ones((IMAGES, 3), int)).outputs.argmax(axis=1)
    for name in ("static graph, option 1", "controller, option 1 held"):
        assert accuracies[name] == pytest.approx((least == labels).mean())


def test_the_split_adds_up_and_every_branch_was_timed(report, path):
    split = report.split
    parts = ("agent_ms", "pieces_ms", "read_back_ms", "regrouping_ms", "dispatch_ms")
    assert split.sum_ms == pytest.approx(sum(getattr(split, part) for part in parts))
    assert split.agent_ms > 0
    assert split.pieces_ms > 0
    assert split.runs == 10
    with Controller.load(path) as controller:
        files = sorted(piece.file for step in controller.plan.steps for piece in step.pieces)
    assert sorted(piece.file for piece in report.pieces) == files


def test_a_batch_of_one_has_paths_with_latencies_and_an_expected_one(path, images):
    report = benchmark(path, Inputs("mine", images), BenchSettings(penalty=-0.02, **QUICK))
    assert report.expected.expected_ms > 0
    assert report.expected.ratio == pytest.approx(report.expected.expected_ms / report.expected.measured_ms)
    assert all(taken.p50_ms for taken in report.decisions.paths)
    assert by_name(report)["controller"].accuracy is None


def test_records_are_of_every_run_of_every_contender(report, decided):
    assert len(report.records) == 10 * len(report.contenders)
    assert {record.first_image for record in report.records} == {0, 2, 4}
    ours = [record for record in report.records if record.contender == "controller"]
    assert [record.first_image for record in ours] == [0, 2, 4, 0, 2, 4, 0, 2, 4, 0]
    assert all(record.batch == 2 and record.options is None for record in ours)
    mean = np.mean([record.latency_ms for record in ours])
    assert by_name(report)["controller"].latency.mean_ms == pytest.approx(mean)


def test_records_of_single_images_have_their_options(path, images, decided):
    settings = BenchSettings(penalty=-0.02, pieces=False, records=True, **QUICK)
    report = benchmark(path, Inputs("mine", images), settings)
    for record in report.records:
        if record.contender == "controller":
            assert record.options == tuple(decided.options[record.first_image].tolist())
    assert report.pieces == ()
    assert report.expected.reason


def test_what_is_asked_for_is_there_and_nothing_else(report, path, images, labels):
    assert (report.load, report.batches, report.balance) == (None, None, None)
    settings = BenchSettings(
        batches=(1, 3),
        balance=True,
        scenario="offline",
        most_batch=3,
        pieces=False,
        **{**QUICK, "min_runs": 2, "duration_s": 0.01},
    )
    more = benchmark(path, Inputs("mine", images, labels), settings)
    assert {point.batch for point in more.batches.points} == {1, 3}
    assert {point.policy for point in more.batches.points} == {"regroup", "serial", "round-up", "dense"}
    assert {run.contender for run in more.load.runs} == {"controller", "dense network, one graph"}
    assert more.settings.scenario == more.load.scenario == "offline"
    assert len(more.balance.points) > 5
    assert more.balance.dense_accuracy == pytest.approx((IMAGES - 1) / IMAGES)


def spied(monkeypatch, *names):
    """The arguments of the last call of each function of the module."""
    calls = {}

    def spy(name, function):
        def call(*args, **how):
            calls[name] = SimpleNamespace(args=args, **how)
            return function(*args, **how)

        monkeypatch.setattr(module, name, call)

    for name in names:
        spy(name, getattr(module, name))
    return calls


def test_what_is_expected_and_nearest_is_of_the_images_that_are_timed(path, images, decided, monkeypatch):
    calls = spied(monkeypatch, "expected_latency", "nearest_path")
    settings = BenchSettings(
        penalty=-0.02, **{**QUICK, "min_runs": 4}
    )  # two batches, so that each is run twice
    benchmark(path, Inputs("mine", images), settings)
    assert np.array_equal(calls["expected_latency"].args[1], decided.options[:2])
    assert np.array_equal(calls["nearest_path"].args[0], decided.options[:2])
    assert np.array_equal(calls["nearest_path"].args[1], decided.macs[:2])


def test_the_seed_and_the_penalty_reach_all_that_is_measured(path, images, monkeypatch):
    seeded = (
        "timed_in_turns",
        "time_pieces",
        "sweep_batches",
        "sweep_penalties",
        "measure_load",
        "balance_of",
    )
    calls = spied(monkeypatch, *seeded, "agent_call_ms")
    settings = BenchSettings(
        seed=7, penalty=-0.02, batches=(1,), balance=True, scenario="offline", most_batch=2,
        **{**QUICK, "min_runs": 2, "duration_s": 0.01},
    )  # fmt: skip
    benchmark(path, Inputs("mine", images), settings)
    assert {name: calls[name].seed for name in seeded} == dict.fromkeys(seeded, 7)
    assert {calls[name].penalty for name in ("sweep_batches", "agent_call_ms")} == {-0.02}


def test_all_runs_that_decide_do_so_at_the_penalty(path, images, monkeypatch):
    penalties, run = [], Controller.run

    def spy(self, images, **how):
        if how.get("options") is None and how.get("policy") != "round-up":
            penalties.append(how.get("penalty"))
        return run(self, images, **how)

    monkeypatch.setattr(Controller, "run", spy)
    settings = BenchSettings(
        penalty=-0.02, batches=(1,), scenario="offline", **{**QUICK, "min_runs": 2, "duration_s": 0.01}
    )
    benchmark(path, Inputs("mine", images), settings)
    assert set(penalties) == {-0.02}


def test_the_split_is_of_the_last_runs(path, images, monkeypatch):
    taken, take = [], module.MeasuredController.take
    monkeypatch.setattr(module.MeasuredController, "take", lambda self: taken.append(take(self)) or taken[-1])
    calls = spied(monkeypatch, "split_report")
    benchmark(path, Inputs("mine", images), BenchSettings(pieces=False, **QUICK))
    runs, whole_ms, batch_of, _ = calls["split_report"].args
    assert len(runs) == len(whole_ms) == len(batch_of) == 10 < len(taken[0])
    assert runs == taken[0][-10:]


def bench_of(**fields):
    """Of these alone."""
    return module._Bench(**{**dict.fromkeys(module._Bench.__dataclass_fields__), **fields})


def test_a_device_times_its_work_too(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "timed_in_turns", lambda *what, **how: calls.append(how["device_timer"]))
    for memory in (SimpleNamespace(on_host=False, timer="its own"), SimpleNamespace(on_host=True)):
        bench_of(settings=BenchSettings(), opened=SimpleNamespace(memory=memory))._timed({}, [])
    assert calls == ["its own", None]


def test_a_batch_that_parts_is_of_no_path():
    timed = {
        "controller": SimpleNamespace(
            batch_of=np.array([0, 1, 0, 1, 0]), latencies_ms=np.array([1.0, 20, 2, 40, 3])
        )
    }
    decided = SimpleNamespace(options=np.array([[1, 2], [1, 2], [1, 2], [2, 2]]))
    assert bench_of(settings=BenchSettings(batch=2))._path_ms(timed, decided) == {(1, 2): 2.0}


def test_a_baseline_of_other_outputs_has_no_accuracy():
    bench = bench_of(
        inputs=Inputs("mine", np.zeros((3, 1, 1, 1), np.float32), np.zeros(3, np.int64)),
        settings=BenchSettings(), progress=lambda *_: None,
    )  # fmt: skip
    entries = [
        SimpleNamespace(kind="baseline", name=str(k), options=None, run=lambda _, part, k=k: np.zeros((len(part), k)))
        for k in (5, 6)
    ]  # fmt: skip
    decided = SimpleNamespace(outputs=np.zeros((3, 5)))
    assert bench._accuracies(entries, decided) == {"5": 1.0, "6": None}


@pytest.mark.parametrize(
    ("backend", "batch", "built"),
    [("tensorrt", 8, [8]), ("tensorrt", 1, [1]), ("tensorrt", 4, []), ("onnxruntime", 8, [])],
)
def test_tensorrt_builds_the_dense_network_for_each_batch_size(backend, batch, built, monkeypatch):
    controller = SimpleNamespace(manifest=SimpleNamespace(option_counts=(2, 2)))
    bench = bench_of(
        settings=BenchSettings(batch=4), opened=SimpleNamespace(backend=backend), controller=controller, bundle="one"
    )  # fmt: skip
    sizes = []
    monkeypatch.setattr(module, "static_contender", lambda *_, batch, threads: sizes.append(batch) or "built")
    assert bench._dense_for(batch, SimpleNamespace(run="opened")) == ("built" if built else "opened")
    assert sizes == built


def test_an_engine_set_has_no_rivals_without_its_bundle(engine_set, path, images):
    alone, beside = (
        benchmark(
            engine_set("chain"), Inputs("mine", images), BenchSettings(bundle=bundle, pieces=False, **QUICK)
        )
        for bundle in (None, path)
    )
    assert alone.contenders[0].name == "controller"
    assert by_name(alone)["controller, option 4 held"].speedup == 1.0
    assert [contender.name for contender in beside.contenders][:4] == STATIC
    assert (alone.subject.kind, alone.subject.backend) == ("engine set", "onnxruntime")
    assert beside.split.agent_ms > 0


def test_a_baseline_takes_its_turn(path, images, labels, tmp_path):
    from rnp_deploy.bundle import open_bundle
    from rnp_deploy.engines.single_file import single_file_from_bundle

    (tmp_path / "all.onnx").write_bytes(single_file_from_bundle(open_bundle(path)).SerializeToString())
    settings = BenchSettings(baselines=(tmp_path / "all.onnx",), pieces=False, **QUICK)
    report = benchmark(path, Inputs("mine", images, labels), settings)
    (single,) = (contender for contender in report.contenders if contender.kind == "single-file")
    assert single.accuracy == by_name(report)["controller"].accuracy


def test_it_says_what_was_timed_with_what_and_how(report, path, images):
    assert (report.command, report.subject.path, report.subject.kind) == ("rnp-bench it", str(path), "bundle")
    assert (report.subject.backend, report.subject.device, report.subject.precision) == (
        "onnxruntime",
        "cpu",
        "fp32",
    )
    assert len(report.subject.convs) == len(report.subject.widths) == 3
    assert (report.data.name, report.data.images, report.data.labelled, report.data.stamp) == (
        "mine",
        7,
        True,
        None,
    )
    assert (report.settings.batch, report.settings.penalty, report.settings.threads) == (2, -0.02, 1)
    assert report.environment["threads"] == 1
    assert report.environment["processor"]
    assert {image.index for image in (*report.cheapest, *report.dearest)} <= set(range(IMAGES))
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


def test_random_inputs_are_stamped(path):
    with Controller.load(path) as controller:
        inputs = random_inputs(controller.manifest, 3, 0)
    report = benchmark(path, inputs, BenchSettings(pieces=False, **QUICK))
    assert report.data.stamp == RANDOM_STAMP
    assert RANDOM_STAMP in report.warnings


@pytest.mark.parametrize(
    ("cv", "stable", "host_share", "words"),
    [
        (
            0.026,
            True,
            0.2,
            ["coefficient of variation passes 2.5% for 1 of 2 contenders, at most 2.6% (controller)"],
        ),
        (0.024, True, 0.26, ["the host is the limit: 26%"]),
        (None, False, 0.0, ["not stable"]),
        (0.0, True, 0.25, []),
    ],
)
def test_warnings(report, cv, stable, host_share, words):
    contenders = [
        SimpleNamespace(name="controller", kind="controller", latency=SimpleNamespace(cv=cv)),
        SimpleNamespace(name="other", kind="dense", latency=SimpleNamespace(cv=0.01)),
    ]
    split = report.split.model_copy(update={"host_share": host_share})
    said = warnings_of(
        contenders, split, SimpleNamespace(stable=stable, warm_up_s=1.0), random=False, trained=True
    )
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said, strict=True))


def test_an_untrained_agent_is_said_to_be_one(report):
    said = warnings_of([], report.split, SimpleNamespace(stable=True), random=False, trained=False)
    assert "untrained" in said[0]
    assert "the dense network was not timed" in said[1]


def test_energy_is_null_with_the_reason_where_nothing_counts_it(path, images, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "open_energy_meter", lambda device: asked.append(device) or "meter")
    monkeypatch.setattr(module, "measure_energy", lambda meter, *what, **how: Energy(reason=f"no {meter}"))
    report = benchmark(path, Inputs("mine", images), BenchSettings(pieces=False, **QUICK))
    assert asked[0] == "cpu"
    assert {contender.energy.reason for contender in report.contenders} == {"no meter"}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batch": 8}, ["7 images", "batch of 8"]),
        ({"batch": 0}, ["batch of 0"]),
        ({"min_runs": 1}, ["min_runs is 1"]),
        ({"penalty": float("nan")}, ["penalty"]),
        ({"threads": 0}, ["threads is 0"]),
        ({"images": np.zeros((2, 3, 16, 17), np.float32)}, ["(1, 3, 16, 17)", "[N, 3, 16, 16]"]),
        ({"images": np.zeros((2, 3, 16, 16))}, ["float64", "float32"]),
        ({"images": np.full((2, 3, 16, 16), np.nan, np.float32)}, ["NaN"]),
        ({"backend": "tpu"}, ["'tpu'"]),
        ({"baselines": ["a/own.onnx", "mine.onnx", "b/own.onnx"]}, ["two baselines are called own.onnx"]),
    ],
    ids=str,
)
def test_bad_arguments(path, images, changed, words):
    changed = {**QUICK, **changed}
    given = changed.pop("images", images)
    with pytest.raises(InputError) as caught:
        benchmark(path, Inputs("mine", given), BenchSettings(**changed))
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"scenario": "server"}, "qps, or an SLO, slo_ms"),
        ({"scenario": "offline", "slo_ms": 3.0}, "the scenario is 'offline'; leave them out"),
        ({"qps": 3.0}, "the scenario is 'single-stream'; leave them out"),
        ({"scenario": "batches"}, "the scenario is 'batches'"),
        ({"baselines": ("a/x.onnx", "b/x.onnx")}, "two baselines are called x.onnx"),
        ({"scenario": "offline", "duration_s": 0.0}, "a load needs seconds"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_said_before_anything_is_opened(images, changed, words):
    with pytest.raises(InputError, match=words):
        benchmark("nowhere", Inputs("mine", images), BenchSettings(**{**QUICK, **changed}))


def test_a_gpu_where_there_is_none(path, images, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EngineError, match=r"CUDA|GPU"):
        benchmark(path, Inputs("mine", images), BenchSettings(device="cuda", **QUICK))


def test_a_missing_bundle(tmp_path, images):
    with pytest.raises(BundleError, match="nowhere does not exist"):
        benchmark(tmp_path / "nowhere", Inputs("mine", images))
