"""Pieces timed within whole runs, by a clock that they move; paths that cover every piece."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings

from bundles import small_manifest
from random_plans import plan_cases
from rnp_deploy.benchmarking.pieces import covering_paths, expected_latency, time_pieces
from rnp_deploy.benchmarking.report import PieceReport
from rnp_deploy.benchmarking.split import MeasuredController
from rnp_deploy.errors import InputError
from rnp_deploy.plan import Piece, Plan, Step, plan_of_bundle
from simulated_clock import SimulatedClock
from small_network import Network, fused_plan, images_of

COSTS_MS = {
    "s0/full.onnx": 10.0, "agent/0.onnx": 1.0, "s1/1.onnx": 20.0, "s1/2.onnx": 16.0, "agent/1.onnx": 2.0,
    "s2/1-1.onnx": 32.0, "s2/1-2.onnx": 31.0, "s2/2-1.onnx": 30.0, "s2/2-2.onnx": 30.0,
}  # fmt: skip
PLAN = plan_of_bundle(small_manifest())


def taken(plan, paths):
    return {
        (i, tuple(path[t] for t in step.option_decisions))
        for i, step in enumerate(plan.steps)
        for path in paths
    }


def every_piece(plan):
    return {(i, piece.options) for i, step in enumerate(plan.steps) for piece in step.pieces}


@given(plan_cases())
@settings(max_examples=60, deadline=None)
def test_paths_cover_every_piece_and_each_takes_one_that_no_earlier_one_took(case):
    paths = covering_paths(case.plan, case.counts)
    assert all(len(path) == len(case.counts) for path in paths)
    assert all(1 <= j <= k for path in paths for j, k in zip(path, case.counts, strict=True))
    assert taken(case.plan, paths) == every_piece(case.plan)
    for n in range(len(paths)):
        assert taken(case.plan, paths[:n]) < taken(case.plan, paths[: n + 1])


def plan_over(tensors, *decisions, options=4):
    """Steps that depend on these decisions."""
    steps = [
        Step(
            option_decisions=read, inputs={}, outputs={},
            pieces=tuple(
                Piece(options=o, file=f"{s}-{o}", macs=1, weight_bytes=0)
                for o in itertools.product(range(1, options + 1), repeat=len(read))
            ),
        )
        for s, read in enumerate(decisions)
    ]  # fmt: skip
    return Plan(tensors=tensors, steps=tuple(steps))


@pytest.mark.parametrize(
    ("decisions", "paths"),
    [
        ([()], 1),
        ([(), (0,), (1,), (2,)], 4),
        ([(), (0,), (0, 1), (1, 2), (2, 3)], 16),
        ([(), (0,), (0, 1), (0, 1, 2)], 64),
    ],
    ids=["none", "one each", "pairs", "three"],
)
def test_paths_are_as_few_as_the_step_with_most_pieces_has(decisions, paths):
    assert len(covering_paths(plan_over((), *decisions), [4] * 4)) == paths


class Bench:
    """The small network, its pieces at their costs; ``jitter`` is added to every third run of any."""

    def __init__(self, plan=None, jitter=0.0, **how):
        self.clock, self.network, self.jitter = SimulatedClock(), Network(), jitter
        self.batches, self.seen = [], set()
        self.measured = MeasuredController(small_manifest(), self.open, plan=plan, clock=self.clock, **how)

    def open(self, path):
        engine = self.network.open(path)
        compute = engine._compute

        def slow(feeds):
            self.clock.spend_ms(COSTS_MS[path] + self.jitter * (len(engine.runs) % 3 == 0))
            self.batches.append(len(next(iter(feeds.values()))))
            self.seen.update(feeds["images"][:, 0, 0, 0].tolist() if "images" in feeds else ())
            return compute(feeds)

        engine._compute = slow
        return engine

    def timed(self, images, **how):
        settings = {"min_runs": 4, "duration_s": 0.0, "clock": self.clock, **how}
        return time_pieces(self.measured, images, **settings)


def test_every_piece_is_timed_where_it_is():
    bench = Bench()
    pieces = bench.timed(images_of(range(4)), min_runs=6).pieces
    assert [piece.file for piece in pieces] == [piece.file for step in PLAN.steps for piece in step.pieces]
    assert {piece.file: piece.p50_ms for piece in pieces} == COSTS_MS
    runs = {piece.file: piece.runs for piece in pieces}
    assert runs["s0/full.onnx"] == 24  # four paths
    assert (runs["s1/1.onnx"], runs["s2/1-2.onnx"], runs["agent/1.onnx"]) == (12, 6, 6)


def test_what_a_piece_is_and_moves():
    pieces = {piece.file: piece for piece in Bench().timed(images_of(range(6)), batch=3).pieces}
    middle = pieces["s1/1.onnx"]
    assert (middle.step, middle.agent, middle.decisions, middle.options) == (2, False, (0,), (1,))
    # x0 [2, 2, 2] comes in, x1 [2, 2, 2] at option 1 and f1 [4] go out, of float32; weights once.
    assert (middle.macs, middle.bytes_moved) == (100, 8 + 3 * 4 * (8 + 8 + 4))
    assert pieces["s1/2.onnx"].bytes_moved == 16 + 3 * 4 * (8 + 16 + 4)
    assert middle.gmacs_per_s == pytest.approx(3 * 100 / 20.0e-3 / 1e9)
    assert middle.intensity == pytest.approx(300 / middle.bytes_moved)
    agent = pieces["agent/1.onnx"]
    # f1 [4], the state [3] before and after, the penalty and the option, which is int64.
    assert (agent.agent, agent.macs, agent.options, agent.bytes_moved) == (
        True,
        7,
        (),
        3 * 4 * (4 + 6 + 1 + 2),
    )


def test_without_macs_there_is_no_rate():
    plan = fused_plan()
    steps = list(plan.steps)
    steps[0] = steps[0].model_copy(update={"pieces": (steps[0].pieces[0].model_copy(update={"macs": 0}),)})
    piece = Bench(plan.model_copy(update={"steps": tuple(steps)})).timed(images_of([0])).pieces[0]
    assert (piece.macs, piece.gmacs_per_s, piece.intensity) == (0, None, None)


def test_options_that_are_not_faster_than_the_next_wider():
    pieces = {piece.file: piece for piece in Bench().timed(images_of([0, 1])).pieces}
    marked = {file: piece.not_faster_than for file, piece in pieces.items() if piece.not_faster_than}
    # 1-1 against 1-2 and 2-1, of which this is the fastest; never against 2-2, where both options differ.
    assert marked == {"s1/1.onnx": (2,), "s2/1-1.onnx": (2, 1), "s2/1-2.onnx": (2, 2), "s2/2-1.onnx": (2, 2)}


def test_the_median_and_the_mean_are_of_all_runs_but_those_that_warm_up():
    piece = Bench(jitter=3.0).timed(images_of([0]), min_runs=6).pieces[-1]
    assert (piece.runs, piece.p50_ms, piece.mean_ms) == (6, 30.0, pytest.approx(31.0))


def test_a_batch_that_is_run_in_parts_takes_what_they_take_together():
    bench = Bench(max_batch=2)
    pieces = bench.timed(images_of(range(5)), batch=5).pieces
    assert {piece.file: piece.p50_ms for piece in pieces} == {
        file: 3 * cost for file, cost in COSTS_MS.items()
    }


def test_eight_batches_do():
    bench = Bench()
    bench.timed(images_of(range(19)), batch=2, min_runs=12)
    assert bench.seen == set(range(16))


def test_a_batch_stays_together():
    bench = Bench()
    assert bench.timed(images_of(range(7)), batch=3).beside_ms is None
    assert set(bench.batches) == {3}
    assert not any(engine.apart_runs for engine in bench.network.engines.values())


def test_a_fused_plan_has_no_agent_of_its_own():
    pieces = Bench(fused_plan()).timed(images_of([0, 3])).pieces
    assert not any(piece.agent for piece in pieces)
    assert {piece.file: piece.p50_ms for piece in pieces} == {
        f: c for f, c in COSTS_MS.items() if f[0] == "s"
    }


def test_what_runs_beside_has_its_turn_in_every_round():
    bench, costs = Bench(), itertools.cycle([5.0, 15.0])
    timed = bench.timed(images_of([0]), min_runs=10, beside=lambda: bench.clock.spend_ms(next(costs)))
    assert timed.beside_ms == 10.0
    assert {piece.file: piece.p50_ms for piece in timed.pieces} == COSTS_MS


def test_orders_go_by_the_seed():
    moments = []
    for seed in (1, 1, 2):
        bench, began = Bench(), []
        bench.timed(
            images_of([0]), seed=seed, beside=lambda bench=bench, began=began: began.append(bench.clock.now)
        )
        moments.append(began)
    assert moments[0] == moments[1] != moments[2]


def test_it_lasts_as_long_as_asked():
    bench = Bench()
    began_ns = bench.clock.now
    bench.timed(images_of([0]), min_runs=1, duration_s=20.0)
    assert 20.0 <= (bench.clock.now - began_ns) / 1e9 < 25.0  # with the warm-up


@pytest.mark.parametrize("batch", [0, 3])
def test_too_few_images(batch):
    with pytest.raises(InputError, match=f"2 images do not fill a batch of {batch}"):
        Bench().timed(images_of([0, 1]), batch=batch)


def reports(mean_ms):
    return [
        PieceReport(
            step=i, file=piece.file, agent=False, decisions=step.option_decisions, options=piece.options, macs=0,
            bytes_moved=0, runs=1, p50_ms=99.0, mean_ms=mean_ms[piece.file], gmacs_per_s=None, intensity=None,
        )
        for i, step in enumerate(PLAN.steps)
        for piece in step.pieces
    ]  # fmt: skip


def test_the_expected_latency_is_the_mean_over_images():
    options = np.array([[1, 2], [2, 1], [2, 1], [2, 2]])
    expected = expected_latency(reports(COSTS_MS), options, PLAN, 50.0, 1)
    stem_and_agent = 10.0 + 1.0 + 2.0
    assert expected.expected_ms == pytest.approx(stem_and_agent + (20 + 31 + 2 * (16 + 30) + 16 + 30) / 4)
    assert (expected.measured_ms, expected.reason) == (50.0, None)
    assert expected.ratio == pytest.approx(expected.expected_ms / 50.0)


def test_larger_batches_share_pieces_and_have_no_expectation():
    expected = expected_latency(reports(COSTS_MS), np.array([[1, 2], [2, 2]]), PLAN, 50.0, 2)
    assert (expected.expected_ms, expected.measured_ms, expected.ratio) == (None, None, None)
    assert "of 2" in expected.reason
