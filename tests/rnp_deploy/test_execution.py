"""Going through a plan: bound while a batch agrees, regrouped once it parts, the same results always."""

from __future__ import annotations

import threading
from collections import Counter
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundles import small_manifest
from random_plans import plan_cases
from rnp_deploy import Controller, execution
from rnp_deploy.engine_cache import EngineCache
from rnp_deploy.errors import EngineError
from rnp_deploy.execution import PlanRunner
from rnp_deploy.plan import Piece, Plan, Step, plan_of_bundle
from rnp_deploy.workspace import MemoryLayout, Workspaces
from small_network import AGENT, Network, decided, expected_outputs, fused_plan, images_of

PLANS = {"bundle": plan_of_bundle(small_manifest()), "fused": fused_plan()}
POLICIES = ["regroup", "serial", "round-up"]


@pytest.fixture
def network():
    return Network()


@pytest.fixture(params=PLANS)
def controller(request, network):
    """Over the bundle's plan, and over one that has the agent inside its branches."""
    with Controller(small_manifest(), network.open, plan=PLANS[request.param]) as controller:
        yield controller


@pytest.fixture
def fused(network):
    with Controller(small_manifest(), network.open, plan=fused_plan()) as controller:
        yield controller


def how_run(network):
    """Branches that ran bound to their memory, and those that were fed; the agent aside."""
    branches = {path: engine for path, engine in network.engines.items() if path not in AGENT}
    bound = [path for path, engine in branches.items() if engine.bound_runs]
    return sorted(bound), sorted(path for path, engine in branches.items() if engine.apart_runs)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("given_options", [False, True], ids=["decided", "given"])
def test_a_batch_that_agrees_is_not_gathered(network, controller, batch, given_options):
    ids = [4 * i + 1 for i in range(batch)]
    result = controller.run(images_of(ids), options=decided(ids) if given_options else None)
    assert result.outputs.tolist() == expected_outputs(ids, [[2, 1]] * batch)
    assert result.options.tolist() == [[2, 1]] * batch
    assert how_run(network) == (["s0/full.onnx", "s1/2.onnx", "s2/2-1.onnx"], [])
    assert {b for engine in network.engines.values() for b in engine.bound_runs} == {batch}


@pytest.mark.parametrize("given_options", [False, True], ids=["decided", "given"])
@pytest.mark.parametrize(
    ("ids", "bound", "apart"),
    [
        ([0, 1], ["s0/full.onnx"], ["s1/1.onnx", "s1/2.onnx", "s2/1-1.onnx", "s2/2-1.onnx"]),
        ([3, 2, 3], ["s0/full.onnx"], ["s1/1.onnx", "s1/2.onnx", "s2/1-2.onnx", "s2/2-2.onnx"]),
        ([2, 0, 6], ["s0/full.onnx", "s1/1.onnx"], ["s2/1-1.onnx", "s2/1-2.onnx"]),
        ([1, 3], ["s0/full.onnx", "s1/2.onnx"], ["s2/2-1.onnx", "s2/2-2.onnx"]),
    ],
    ids=str,
)
def test_a_batch_runs_together_up_to_the_decision_at_which_it_parts(
    network, controller, ids, bound, apart, given_options
):
    result = controller.run(images_of(ids), options=decided(ids) if given_options else None)
    assert result.outputs.tolist() == expected_outputs(ids, decided(ids))
    assert result.options.tolist() == decided(ids)
    assert result.macs.tolist() == [1000 + 100 * a + 10 * a + b for a, b in decided(ids)]
    assert how_run(network) == (bound, apart)
    if given_options:
        assert not set(network.opened) & set(AGENT), "the agent was asked"


@pytest.mark.parametrize("ids", [[5, 2, 1, 0], [4, 2, 6, 0]], ids=["at decision 0", "at decision 1"])
def test_what_was_made_before_is_handed_over_sample_by_sample(network, ids):
    """The state, the features, and x0, which skips a stage."""
    with Controller(small_manifest(), network.open) as controller:
        controller.run(images_of(ids), penalty=[10, 20, 30, 40])
    step = network.runs(AGENT[1])[0]
    prices = [10, 20, 30, 40]
    assert step["state"].tolist() == [[1, i, price] for i, price in zip(ids, prices, strict=True)]
    assert step["features"][:, :2].tolist() == [[i, a] for i, (a, _) in zip(ids, decided(ids), strict=True)]
    assert step["penalty"].tolist() == prices
    seen = [
        (i, x0, len(run["x1"][0]))
        for path, engine in network.engines.items()
        if path.startswith("s2")
        for run in engine.runs
        for i, x0 in zip(run["x1"][:, 0, 0, 0].tolist(), run["x0"][:, 0, 0, 0].tolist(), strict=True)
    ]
    assert sorted(seen) == sorted((i, i, 2 * a) for i, (a, _) in zip(ids, decided(ids), strict=True))


def test_the_state_of_a_fused_plan_goes_along_when_the_batch_parts(network, fused):
    fused.run(images_of([5, 2, 0]), penalty=[1, 2, 3])
    fed = {
        i: state
        for path in ("s1/1.onnx", "s1/2.onnx")
        for run in network.engines[path].apart_runs
        for i, state in zip(run["x0"][:, 0, 0, 0].tolist(), run["state"].tolist(), strict=True)
    }
    assert fed == {5: [1, 5, 1], 2: [1, 2, 2], 0: [1, 0, 3]}


def choosing(network, t, wrong):
    """Let the agent choose ``wrong[id]`` at decision t."""
    agent = network.agent

    def spoilt(name, feeds):
        made = agent(name, feeds)
        if int(name) == t:
            for i, sample in enumerate(feeds["features"][:, 0]):
                made["option"][i] = wrong.get(int(sample), made["option"][i])
        return made

    network.agent = spoilt


@pytest.mark.parametrize(
    ("t", "ids", "wrong", "fused_piece"),
    [
        (0, [1], {1: 0}, "s0/full.onnx"),
        (0, [1], {1: -1}, "s0/full.onnx"),
        (0, [0, 1, 2], {2: 3}, "s0/full.onnx"),
        (1, [0, 4], {4: 0}, "s1/1.onnx"),
        (1, [1], {1: 3}, "s1/2.onnx"),
        (1, [0, 1], {0: 3}, "s1/1.onnx"),
        (1, [0, 1], {1: 3}, "s1/2.onnx"),
    ],
    ids=str,
)
def test_an_option_out_of_range_names_the_piece_that_chose_it(
    network, controller, t, ids, wrong, fused_piece
):
    choosing(network, t, wrong)
    piece = fused_piece if controller.plan.steps[0].decides == 0 else AGENT[t]
    with pytest.raises(EngineError, match=rf"{piece} chose option .*; decision {t} has 1\.\.2") as caught:
        controller.run(images_of(ids))
    assert str(next(iter(wrong.values()))) in str(caught.value)
    assert controller.run(images_of([7, 7])).options.tolist() == [[2, 2]] * 2


@pytest.mark.parametrize("ids", [[0, 0], [0, 1]], ids=["together", "apart"])
def test_an_output_that_is_missing_names_the_piece(network, controller, ids):
    network.middle = lambda name, feeds: {"f1": np.zeros((len(feeds["x0"]), 4), np.float32)}
    with pytest.raises(EngineError, match=r"s1/1\.onnx has no output|no output 'x1'"):
        controller.run(images_of(ids))


def test_calls_are_bound_once_for_each_piece_and_batch_size(network, controller):
    for ids in ([0], [4], [0, 4], [8, 12], [0], [0, 8, 4], [1], [1, 5], [1, 5]):
        controller.run(images_of(ids))
    one, two = network.engines["s1/1.onnx"], network.engines["s1/2.onnx"]
    assert Counter(one.binds) == {1: 1, 2: 1, 3: 1}
    assert Counter(two.binds) == {1: 1, 2: 1}
    assert one.bound_runs == [1, 1, 2, 2, 1, 3]
    assert two.bound_runs == [1, 2, 2]


@pytest.mark.parametrize(
    ("policy", "taken"),
    [
        ("regroup", [[1, 1], [2, 1], [1, 2]]),
        ("serial", [[1, 1], [2, 1], [1, 2]]),
        ("round-up", [[2, 2], [2, 2], [2, 2]]),
    ],
)
@pytest.mark.parametrize("given_options", [False, True], ids=["decided", "given"])
def test_policies(network, controller, policy, taken, given_options):
    ids = [4, 1, 2]
    given_to_it = np.array(decided(ids))
    result = controller.run(images_of(ids), policy=policy, options=given_to_it if given_options else None)
    assert result.options.tolist() == taken
    assert result.outputs.tolist() == expected_outputs(ids, taken)
    assert result.macs.tolist() == [1000 + 100 * a + 10 * a + b for a, b in taken]
    assert result.approximate is (policy == "round-up")
    assert given_to_it.tolist() == decided(ids)
    if policy != "regroup":
        assert how_run(network)[1] == [], "something was gathered"
    batches = {b for engine in network.engines.values() for b in engine.bound_runs}
    assert batches == ({1} if policy == "serial" else {3})


@pytest.mark.parametrize("policy", POLICIES)
def test_one_sample_is_exact_under_any_policy(controller, policy):
    result = controller.run(images_of([2]), policy=policy)
    assert result.options.tolist() == [[1, 2]]
    assert not result.approximate


def test_rounding_up_is_done_at_each_decision_by_itself(network, controller):
    """The second decision sees the features of the branch that was taken, not of the one decided."""
    agent = network.agent

    def second_follows_the_branch(name, feeds):
        made = agent(name, feeds)
        if int(name) == 1:
            made["option"] = feeds["features"][:, 1].astype(np.int64)
        return made

    network.agent = second_follows_the_branch
    result = controller.run(images_of([0, 1]), policy="round-up")
    assert result.options.tolist() == [[2, 2], [2, 2]]


def runner_of(case, budget=None, large=2**18, part=2**24):
    """``large`` and ``part``: bytes above which a tensor is large, and that a part's largest tensor may have."""
    weights = {piece.file: piece.weight_bytes for step in case.plan.steps for piece in step.pieces}
    cache = EngineCache(case.open, weights, budget, lambda engine: runner.workspaces.forget(engine))
    with mock.patch.multiple(execution, _LARGE_BYTES=large, _PART_BYTES=part):
        workspaces = Workspaces(MemoryLayout(case.plan, len(case.counts), ["outputs"]))
        runner = PlanRunner(case.plan, ("images", "outputs"), case.counts, cache, workspaces)
    return runner


@pytest.fixture
def in_parts_of_two(monkeypatch):
    """Every tensor of the small network is large, and a part may have two samples of the largest, 64 bytes."""
    monkeypatch.setattr(execution, "_LARGE_BYTES", 0)
    monkeypatch.setattr(execution, "_PART_BYTES", 128)


def sizes_run(network, path):
    """Batch sizes of a branch's bound calls, in order; none may have been fed."""
    assert not network.engines[path].apart_runs
    return list(network.engines[path].bound_runs)


@pytest.mark.usefixtures("in_parts_of_two")
def test_a_large_batch_runs_in_parts_and_each_sample_alone_once_its_part_parts(network, controller):
    ids = [0, 0, 1, 0, 3]
    result = controller.run(images_of(ids))
    assert result.outputs.tolist() == expected_outputs(ids, decided(ids))
    assert sizes_run(network, "s0/full.onnx") == [2, 2, 1]
    assert sizes_run(network, "s1/1.onnx") == [2, 1]
    assert sizes_run(network, "s1/2.onnx") == [1, 1]


@pytest.mark.usefixtures("in_parts_of_two")
def test_a_large_batch_whose_options_are_given_is_divided_by_them(network, controller):
    options = [[2, 1], [1, 1], [2, 1], [2, 2], [1, 1], [2, 1]]
    result = controller.run(images_of(range(6)), options=options)
    assert result.outputs.tolist() == expected_outputs(range(6), options)
    assert sizes_run(network, "s0/full.onnx") == [2, 2, 1, 1]
    assert sizes_run(network, "s2/2-1.onnx") == [2, 1]


@pytest.mark.usefixtures("in_parts_of_two")
def test_a_large_batch_that_is_rounded_up_is_not_divided(network, controller):
    result = controller.run(images_of([0, 1, 2]), policy="round-up")
    assert result.options.tolist() == [[2, 2]] * 3
    assert sizes_run(network, "s0/full.onnx") == [3]


def samples(generator, case, batch):
    """Images, prices, and options: each of its own, some alike."""
    images = generator.integers(0, 4, (batch, 1, 1)).astype(np.float32) * np.ones((batch, 2, 3), np.float32)
    options = np.stack([generator.integers(1, count + 1, batch) for count in case.counts], axis=1)
    return images, generator.integers(0, 2, batch).astype(np.float32), options


def check_run(case, runner, generator, batch, deciding):
    images, prices, given_options = samples(generator, case, batch)
    options = np.zeros_like(given_options) if deciding else given_options.copy()
    run = runner.run(images, prices, options, deciding=deciding)
    with runner.workspaces.lend(batch) as workspace:
        for slot in workspace._slots:
            slot.fill(0xA5)
    alone = [
        case.alone(image, price, None if deciding else tuple(row))
        for image, price, row in zip(images, prices, given_options.tolist(), strict=True)
    ]
    assert run.outputs.tolist() == [outputs for outputs, _, _ in alone]
    assert options.tolist() == [taken for _, taken, _ in alone]
    assert run.macs.tolist() == [macs for _, _, macs in alone]


@settings(max_examples=200, deadline=None)
@given(case=plan_cases(), seed=st.integers(0, 2**31), budget=st.sampled_from([None, 1, 40]), data=st.data())
def test_results_do_not_depend_on_the_grouping(case, seed, budget, data):
    """Nor on the budget, the limits of parts, what ran before, and what lies in the memory."""
    large, part = (
        data.draw(st.sampled_from([2**18, 0, 8, 24])),
        data.draw(st.sampled_from([2**24, 1, 48, 100])),
    )
    runner, generator = runner_of(case, budget, large, part), np.random.default_rng(seed)
    for _ in range(4):
        batch, deciding = data.draw(st.integers(1, 7)), data.draw(st.booleans())
        check_run(case, runner, generator, batch, deciding)


@pytest.mark.parametrize("ids", [[0, 4], [0, 1], [2, 0]], ids=str)
def test_outputs_may_be_made_before_the_last_step_and_read_twice(network, ids):
    plan = fused_plan()
    outputs = next(tensor for tensor in plan.tensors if tensor.name == "outputs")
    late = outputs.model_copy(update={"name": "late"})
    after = Step(
        option_decisions=(1,),
        inputs={"a": "outputs", "b": "outputs"},
        outputs={"late": "late"},
        pieces=tuple(Piece(options=(o,), file=f"late/{o}.onnx", macs=0, weight_bytes=0) for o in (1, 2)),
    )
    plan = Plan(tensors=(*plan.tensors, late), steps=(*plan.steps, after))
    with Controller(small_manifest(), network.open, plan=plan) as controller:
        result = controller.run(images_of(ids))
        controller.run(images_of([i + 8 for i in ids]))
    assert result.outputs.tolist() == expected_outputs(ids, decided(ids))


def test_an_engine_let_go_while_it_is_bound_is_held_by_no_call(network):
    """Another thread needs its room at that moment: what it holds has to be freed after this run."""
    weights = {piece.file: piece.weight_bytes for step in fused_plan().steps for piece in step.pieces}

    def open_engine(path):
        engine = network.open(path)
        if path == "s0/full.onnx":
            bind = engine.bind
            engine.bind = lambda *ends: (cache.get("s1/2.onnx"), bind(*ends))[1]
        return engine

    cache = EngineCache(open_engine, weights, 32, lambda engine: runner.workspaces.forget(engine))
    workspaces = Workspaces(MemoryLayout(fused_plan(), 2, ["outputs"]))
    runner = PlanRunner(fused_plan(), ("images", "outputs"), (2, 2), cache, workspaces)
    for _ in range(2):
        options = np.zeros((1, 2), np.int64)
        runner.run(images_of([0]), np.ones(1, np.float32), options, deciding=True)
        calls = [bound for w in runner.workspaces._idle for calls in w.calls for bound in calls.values()]
        assert {id(bound.engine) for bound in calls} <= {id(network.engines[path]) for path in cache.loaded()}


@settings(max_examples=5, deadline=None)
@given(case=plan_cases(), budget=st.sampled_from([None, 40]))
def test_many_threads_get_what_each_sample_gives_alone(case, budget):
    runner, wrong, barrier = runner_of(case, budget), [], threading.Barrier(6)

    def work(seed):
        generator = np.random.default_rng(seed)
        barrier.wait(10)
        try:
            for i in range(15):
                check_run(case, runner, generator, int(generator.integers(1, 4)), bool(i % 2))
        except Exception as err:  # noqa: BLE001 - reported by the assertion below
            wrong.append(err)
        except AssertionError as err:
            wrong.append(err)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not wrong
