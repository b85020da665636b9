"""Where a run's time goes, by a clock that engines, memory and the opening of engines move."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from bundles import small_manifest
from fake_cuda import use_fake_cuda
from fake_ort_cuda import CudaSessions
from rnp_deploy import Controller, execution
from rnp_deploy.array_memory import HostMemory
from rnp_deploy.benchmarking.split import MeasuredController, RunTimes, open_measured, split_report
from rnp_deploy.bundle.reading import open_bundle
from rnp_deploy.engines import ort_cuda
from rnp_deploy.engines.cuda_memory import CudaMemory
from rnp_deploy.errors import ControllerClosedError, EngineError, InputError
from simulated_clock import SimulatedClock
from small_network import Network, decided, expected_outputs, fused_plan, images_of

OPENING_MS, WRITING_MS, READING_MS, GATHERING_MS = 0.5, 0.25, 0.125, 0.0625
COSTS_MS = {"agent": 2.0, "s0": 10.0, "s1": 20.0, "s2": 30.0}


class SlowMemory(HostMemory):
    """What it does takes the clock's time."""

    def __init__(self, clock):
        self.clock = clock

    def write(self, array, value):
        self.clock.spend_ms(WRITING_MS)
        super().write(array, value)

    def to_host(self, array):
        self.clock.spend_ms(READING_MS)
        return array

    def copy_rows(self, *rows):
        self.clock.spend_ms(GATHERING_MS)
        super().copy_rows(*rows)


class Bench:
    """A measured controller over the small network, whose costs are known."""

    def __init__(self, plan=None, **how):
        self.clock, self.network = SimulatedClock(), Network()
        self.measured = MeasuredController(
            small_manifest(), self.open, plan=plan, memory=SlowMemory(self.clock), clock=self.clock, **how
        )

    def open(self, path):
        self.clock.spend_ms(OPENING_MS)
        engine, cost_ms = self.network.open(path), COSTS_MS[path.split("/")[0]]
        compute = engine._compute

        def slow(feeds):
            self.clock.spend_ms(cost_ms)
            return compute(feeds)

        engine._compute = slow
        return engine

    def run(self, ids, **how):
        """The result, and the times of the run, which are all the clock's time."""
        before_ns = self.clock.now
        result = self.measured.run(images_of(ids), **how)
        (times,) = self.measured.take()
        assert times.sum_ms == pytest.approx((self.clock.now - before_ns) / 1e6)
        return result, times


@pytest.fixture
def bench():
    return Bench()


def accounts(times):
    return [times.agent_ms, times.pieces_ms, times.read_back_ms, times.regrouping_ms, times.dispatch_ms]


def test_a_batch_that_agrees(bench):
    result, times = bench.run([1, 5])
    assert result.outputs.tolist() == expected_outputs([1, 5], [[2, 1]] * 2)
    opened_after_a_decision, opened_else = 2 * OPENING_MS, 3 * OPENING_MS
    ends = 3 * WRITING_MS + READING_MS
    assert accounts(times) == pytest.approx([4.0, 60.0, opened_after_a_decision, 0.0, opened_else + ends])
    assert times.calls == (
        ("s0/full.onnx", 10.0), ("agent/0.onnx", 2.0), ("s1/2.onnx", 20.0), ("agent/1.onnx", 2.0),
        ("s2/2-1.onnx", 30.0),
    )  # fmt: skip
    _, again = bench.run([1, 5])
    assert accounts(again) == pytest.approx([4.0, 60.0, 0.0, 0.0, ends])


@pytest.mark.parametrize("plan", [None, fused_plan()], ids=["bundle", "fused"])
def test_options_that_are_given_are_not_read_back(plan):
    _, times = Bench(plan).run([1], options=[[2, 1]])
    opened, ends = 3 * OPENING_MS, 3 * WRITING_MS + READING_MS
    assert accounts(times) == pytest.approx([0.0, 60.0, 0.0, 0.0, opened + ends])


def test_the_agent_within_pieces_is_read_back_and_its_time_the_pieces():
    _, times = Bench(fused_plan()).run([1])
    opened_first, ends = OPENING_MS, 3 * WRITING_MS + READING_MS
    assert accounts(times) == pytest.approx([0.0, 60.0, 2 * OPENING_MS, 0.0, opened_first + ends])


@pytest.mark.parametrize("plan", [None, fused_plan()], ids=["bundle", "fused"])
def test_a_batch_that_parts_is_regrouped_from_there_on(plan):
    bench = Bench(plan)
    bench.run([1])  # what is run together is open
    result, times = bench.run([1, 0, 1])
    assert result.outputs.tolist() == expected_outputs([1, 0, 1], decided([1, 0, 1]))
    assert times.read_back_ms == 0.0
    assert times.dispatch_ms == pytest.approx(3 * WRITING_MS)
    assert times.pieces_ms == 10.0 + 2 * 20.0 + 2 * 30.0
    assert times.agent_ms == (0.0 if plan else 4.0)
    opened, read = 2 * OPENING_MS, READING_MS * (3 if plan else 2)
    assert times.regrouping_ms >= opened + read + GATHERING_MS


def test_to_put_tensors_aside_where_a_batch_parts_is_regrouping(bench, monkeypatch):
    put = execution.RoutedTensor.put

    def slow_put(self, *rows):
        bench.clock.spend_ms(100.0)
        put(self, *rows)

    monkeypatch.setattr(execution.RoutedTensor, "put", slow_put)
    bench.run([1])
    _, times = bench.run([1, 0])
    assert (times.read_back_ms, times.dispatch_ms) == (0.0, pytest.approx(3 * WRITING_MS))


def test_after_a_part_that_was_regrouped_the_next_begins_with_dispatch():
    bench = Bench(max_batch=2)
    result, times = bench.run([1, 0, 1, 0, 1])
    assert result.options.tolist() == decided([1, 0, 1, 0, 1])
    opened_together = 2 * OPENING_MS
    last_alone = READING_MS
    assert times.dispatch_ms == pytest.approx(3 * 3 * WRITING_MS + opened_together + last_alone)


def test_serial_runs_are_one_account(bench):
    bench.run([1])
    result, times = bench.run([1, 1, 1], policy="serial")
    assert result.options.tolist() == [[2, 1]] * 3
    assert accounts(times) == pytest.approx([12.0, 180.0, 0.0, 0.0, 3 * (3 * WRITING_MS + READING_MS)])


@pytest.fixture
def in_parts_of_two(monkeypatch):
    """Every tensor of the small network is large, and a part may have two samples of the largest, 64 bytes."""
    monkeypatch.setattr(execution, "_LARGE_BYTES", 0)
    monkeypatch.setattr(execution, "_PART_BYTES", 128)


@pytest.mark.usefixtures("in_parts_of_two")
def test_the_loop_within_a_part_of_a_batch_is_as_usual_and_what_is_around_it_regrouping():
    bench = Bench()
    result, times = bench.run([1, 1, 1])
    assert result.outputs.tolist() == expected_outputs([1, 1, 1], [[2, 1]] * 3)
    regrouped = 2 * 3 * WRITING_MS + 2 * GATHERING_MS + READING_MS
    assert accounts(times) == pytest.approx([8.0, 120.0, 2 * OPENING_MS, regrouped, 3 * OPENING_MS])


@pytest.mark.usefixtures("in_parts_of_two")
def test_to_hand_samples_over_where_a_part_parts_is_regrouping(monkeypatch):
    bench, take, taken = Bench(), np.take, []
    for i in (0, 1):
        bench.run([i])

    def slow_take(source, *rows, **where):
        bench.clock.spend_ms(7.0)
        taken.append(7.0)
        return take(source, *rows, **where)

    monkeypatch.setattr(np, "take", slow_take)
    result, times = bench.run([1, 0, 1])
    assert result.options.tolist() == [[2, 1], [1, 1], [2, 1]]
    regrouped = 2 * 3 * WRITING_MS + 3 * GATHERING_MS + READING_MS + sum(taken)
    assert accounts(times)[2:] == pytest.approx([0.0, regrouped, 0.0])
    assert taken


def test_a_run_that_fails_leaves_nothing_behind(bench):
    bench.run([1])
    bench.network.engines["s1/2.onnx"]._compute = lambda feeds: {}
    with pytest.raises(EngineError):
        bench.measured.run(images_of([1]))
    assert bench.measured.take() == []
    _, times = bench.run([0])
    assert times.calls[0] == ("s0/full.onnx", 10.0)
    assert times.pieces_ms == 60.0


def test_runs_are_handed_out_once_and_in_order(bench):
    bench.measured.run(images_of([1]))
    bench.measured.run(images_of([0]))
    runs = bench.measured.take()
    assert [run.calls[2][0] for run in runs] == ["s1/2.onnx", "s1/1.onnx"]
    assert bench.measured.take() == []


@pytest.mark.parametrize("policy", ["regroup", "serial", "round-up"])
def test_it_computes_what_the_plain_controller_does(exported, policy):
    case = exported("chain")
    images = case.images(5).numpy()
    with (
        Controller.load(case.path, threads=1, cache_dir="") as plain,
        open_measured(case.path, threads=1) as measured,
    ):
        for how in ({"penalty": [0.0, 1.0, -1.0, 5.0, 0.1]}, {"options": case.options(5).numpy()}):
            expected = plain.run(images, policy=policy, **how)
            result = measured.run(images, policy=policy, **how)
            assert np.array_equal(result.outputs, expected.outputs)
            assert np.array_equal(result.options, expected.options)
        assert all(account >= 0 for run in measured.take() for account in accounts(run))
    with pytest.raises(ControllerClosedError, match="closed"):
        measured.run(images)


WAKING_MS = 0.5


@pytest.fixture
def on_a_device(exported, monkeypatch):
    """A measured controller on a stand-in, whose engines compute 3 ms, and whose host takes 0.5 ms to wake up."""
    case = exported("chain")
    cuda = use_fake_cuda(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", CudaSessions(cuda))
    clock = SimulatedClock()

    class WakingMemory(CudaMemory):
        def synchronise(self):
            super().synchronise()
            cuda.device_ms += WAKING_MS

    class Slow:
        def __init__(self, engine):
            self.engine = engine

        def compute(self):
            cuda.enqueue(77, lambda: setattr(cuda, "device_ms", cuda.device_ms + 3.0))
            clock.spend_ms(5.0)

        def run(self, feeds):
            self.compute()
            return self.engine.run(feeds)

        def bind(self, inputs, outputs):
            call = self.engine.bind(inputs, outputs)

            def slow():
                self.compute()
                call()

            return slow

        def close(self):
            self.engine.close()

    bundle, memory = open_bundle(case.path), WakingMemory()
    open_engine = ort_cuda.opener(bundle, memory)
    with MeasuredController(
        bundle.manifest, lambda file: Slow(open_engine(file)), memory=memory, clock=clock
    ) as measured:
        yield case, measured


def test_on_a_device_times_are_the_streams_and_the_rest_of_the_wall_time_is_dispatch(on_a_device):
    case, measured = on_a_device
    images = case.images(1)
    for _ in range(2):
        result = measured.run(images.numpy())
    assert result.options.tolist() == case.network(images)[1].tolist()
    times = measured.take()[-1]
    decisions, pieces = 3, 4
    assert accounts(times)[:4] == pytest.approx([3.0 * decisions, 3.0 * pieces, WAKING_MS * decisions, 0.0])
    assert times.sum_ms == pytest.approx(5.0 * (decisions + pieces))  # the wall's


def test_on_a_device_samples_that_part_are_regrouped(on_a_device):
    case, measured = on_a_device
    images, options = case.images(4).numpy(), case.options(4)
    result = measured.run(images, options=options.numpy())
    expected = case.network.run(case.images(4), options).detach().numpy()
    np.testing.assert_allclose(result.outputs, expected, atol=1e-4 * np.abs(expected).max())
    (times,) = measured.take()
    assert times.pieces_ms == 3.0 * len(times.calls)
    assert times.agent_ms == times.read_back_ms == 0.0
    assert times.regrouping_ms > 0


RUNS = [
    RunTimes(1.0, 6.0, 0.5, 0.25, 2.25, (("a", 2.0), ("b", 4.0))),
    RunTimes(3.0, 8.0, 1.5, 0.75, 4.75, (("a", 0.5), ("a", 1.5), ("b", 6.0))),
]


def test_a_split_is_the_mean_of_its_runs():
    split = split_report(RUNS, np.array([13.0, 14.0]), np.array([0, 0]))
    assert (split.whole_ms, split.sum_ms, split.runs) == (13.5, 14.0, 2)
    parts = split.agent_ms, split.pieces_ms, split.read_back_ms, split.regrouping_ms, split.dispatch_ms
    assert parts == (2.0, 7.0, 1.0, 0.5, 3.5)
    assert split.host_share == pytest.approx(4.5 / 14.0)
    assert split.agent_source == "steps of its own"


def test_the_agent_within_pieces_is_taken_off_them_and_no_more_than_a_call_took():
    split = split_report(RUNS, np.array([13.0, 14.0]), np.array([0, 0]), {"a": 1.0})
    assert (split.agent_ms, split.pieces_ms, split.sum_ms) == (2.0 + 1.25, 7.0 - 1.25, 14.0)
    assert split.agent_source == "nodes within pieces, by the runtime's profiler"


def test_pauses_are_told_by_the_batch_and_dear_images_are_none():
    paused, cheap, dear = (RunTimes(0.0, ms, 0.0, 0.0, 0.0, ()) for ms in (500.0, 1.0, 600.0))
    runs = [paused, paused, *([cheap] * 96), dear, dear]
    batch_of = np.array([0, *([0] * 97), 1, 1])
    whole_ms = np.array([400.0, 300.0, *([2.0] * 96), 700.0, 700.0])
    split = split_report(runs, whole_ms, batch_of)
    assert split.runs == 98
    assert split.sum_ms == pytest.approx((96 * 1 + 2 * 600) / 98)
    assert split.whole_ms == pytest.approx((96 * 2 + 2 * 700) / 98)
    assert split_report(runs[:49], whole_ms[:49], batch_of[:49]).pieces_ms > 20.0


def test_an_agent_that_is_not_told_apart():
    split = split_report([RunTimes(0.0, 6.0, 0.5, 0.25, 2.25, ())], np.array([9.0]), np.array([0]))
    assert (split.agent_ms, split.agent_source) == (0.0, "not told apart")


def test_without_runs_there_is_no_split():
    with pytest.raises(InputError, match="no run was measured"):
        split_report([], np.array([1.0]), np.array([0]))
