"""Memory of one run: who shares it, who may not, and who holds it when."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundles import small_manifest
from random_plans import plan_cases
from rnp_deploy import workspace as workspace_module
from rnp_deploy.engines.fake import FakeEngine
from rnp_deploy.plan import PENALTY, Piece, Plan, PlanTensor, Step, option_name, plan_of_bundle, state_name
from rnp_deploy.workspace import MemoryLayout, Workspace, Workspaces
from small_network import fused_plan


def step(inputs, outputs, **fields):
    piece = Piece(options=(), file=f"{'-'.join(outputs)}.onnx", macs=1, weight_bytes=1)
    names = {"inputs": {name: name for name in inputs}, "outputs": {name: name for name in outputs}}
    return Step(**{"option_decisions": (), "pieces": (piece,), **names, **fields})


def chain(*shapes, **fields):
    """t0 → t1 → … of these shapes; ``fields`` are of the last step."""
    tensors = tuple(PlanTensor(name=f"t{i}", shape=shape) for i, shape in enumerate(shapes))
    ends = [(f"t{i}", f"t{i + 1}") for i in range(len(shapes) - 1)]
    steps = [step([x], [y], **(fields if (x, y) == ends[-1] else {})) for x, y in ends]
    return Plan(tensors=tensors, steps=tuple(steps))


@pytest.fixture
def layout():
    return MemoryLayout(plan_of_bundle(small_manifest()), 2, ["outputs"])


@pytest.fixture
def workspaces(layout):
    return Workspaces(layout)


@settings(max_examples=200, deadline=None)
@given(case=plan_cases(), batch=st.integers(1, 3), data=st.data())
def test_a_tensor_keeps_its_values_until_its_last_use(case, batch, data):
    plan = case.plan
    options = [data.draw(st.integers(1, count)) for count in case.counts]
    workspace = Workspace(MemoryLayout(plan, len(options), ["outputs", "x0.0"]), batch)
    last = plan.last_uses() | {"outputs": len(plan.steps), "x0.0": len(plan.steps)}
    holds = {}

    def write(name):
        holds[name] = len(holds) + 1
        workspace.array(name, options).fill(holds[name])

    for name in ("images", PENALTY, state_name(0)):
        write(name)
    for i, step in enumerate(plan.steps):
        overwritten = {step.in_place.get(name) for name in step.outputs.values()}
        for name in step.outputs.values():
            write(name)
        needed = {name for name in holds if last.get(name, i) > i}
        needed |= {*step.inputs.values(), *step.outputs.values()} - overwritten
        for name in needed:
            assert (workspace.array(name, options) == holds[name]).all(), f"{name} at step {i}"


@settings(max_examples=50, deadline=None)
@given(case=plan_cases(), batch=st.integers(1, 3))
def test_an_output_made_in_place_has_the_memory_of_its_input(case, batch):
    workspace = Workspace(MemoryLayout(case.plan, len(case.counts), ["outputs"]), batch)
    for step in case.plan.steps:
        for out, x in step.in_place.items():
            ends = [workspace.array(name, case.counts).__array_interface__["data"] for name in (out, x)]
            assert ends[0] == ends[1]


def test_in_place_is_one_slot_and_otherwise_there_are_two():
    beside = MemoryLayout(chain((4,), (4,)), 0, ["t1"])
    inside = MemoryLayout(chain((4,), (4,), in_place={"t1": "t0"}), 0, ["t1"])
    assert (len(beside.slot_bytes), len(inside.slot_bytes)) == (2, 1)


@pytest.mark.parametrize(
    ("outputs", "kept", "inside"),
    [
        (["y"], ["y"], ["y"]),
        (["y"], ["y", "x"], []),
        (["y", "z"], ["y", "z"], ["y"]),
    ],
    ids=["given up", "still needed", "given up once"],
)
def test_in_place_is_a_leave_that_is_taken_where_the_input_is_given_up(outputs, kept, inside):
    plan = Plan(
        tensors=tuple(PlanTensor(name=name, shape=(16,)) for name in "xyz"),
        steps=(step(["x"], outputs, in_place=dict.fromkeys(outputs, "x")),),
    )
    slots = MemoryLayout(plan, 0, kept).slot_of
    assert [name for name in outputs if slots[name] == slots["x"]] == inside


def test_a_larger_output_in_place_makes_the_slot_larger():
    layout = MemoryLayout(chain((16,), (32,), in_place={"t1": "t0"}), 0, ["t1"])
    assert layout.slot_bytes == [128]


def test_a_chain_needs_two_slots_and_each_is_as_large_as_its_largest_tensor():
    layout = MemoryLayout(chain((16,), (32,), (64,), (16,), (16,)), 0, ["t4"])
    assert sorted(layout.slot_bytes) == [128, 256]


def test_memory_that_is_free_is_used_where_it_has_to_grow_least():
    """Beside a tensor that stays, 64 bytes go where 128 were, not where 1024 were."""
    shapes = {"images": 16, "large": 256, "middle": 32, "small": 16, "next": 16}
    tensors = tuple(PlanTensor(name=name, shape=(size,)) for name, size in shapes.items())
    ends = [(["images"], ["large", "middle"]), (["images", "large", "middle"], ["small"])]
    plan = Plan(tensors=tensors, steps=(*(step(*end) for end in ends), step(["images", "small"], ["next"])))
    layout = MemoryLayout(plan, 0, ["next"])
    assert sorted(layout.slot_bytes) == [64, 64, 128, 1024]
    assert layout.slot_of["next"] == layout.slot_of["middle"]


def test_tensors_that_are_kept_share_with_no_later_one():
    plan = chain((16,), (16,), (16,), (16,))
    slots = [MemoryLayout(plan, 0, kept).slot_of for kept in (["t3"], ["t1", "t3"])]
    assert slots[0]["t1"] == slots[0]["t3"]
    assert slots[1]["t1"] not in (slots[1]["t2"], slots[1]["t3"])


def test_the_largest_option_fits_wherever_it_stands():
    tensors = (
        PlanTensor(name="x", shape=(1,)),
        PlanTensor(name="y", shape=(40,), follows=0, sizes=(1, 40, 2)),
    )
    workspace = Workspace(MemoryLayout(Plan(tensors=tensors, steps=(step(["x"], ["y"]),)), 0, ["y"]), 2)
    assert [workspace.array("y", [option]).shape for option in (1, 2, 3)] == [(2, 1), (2, 40), (2, 2)]


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("plan", [plan_of_bundle(small_manifest()), fused_plan()], ids=["bundle", "fused"])
def test_arrays_are_aligned_contiguous_and_of_their_dtype(plan, batch):
    workspace = Workspace(MemoryLayout(plan, 2, ["outputs"]), batch)
    for name in {
        name for step in plan.steps for ends in (step.inputs, step.outputs) for name in ends.values()
    }:
        array = workspace.array(name, [2, 2])
        assert array.ctypes.data % 64 == 0, name
        assert array.flags.c_contiguous
        assert array.dtype == (np.int64 if "option" in name else np.float32)
        assert len(array) == batch


@pytest.mark.parametrize(("options", "width"), [([1, 1], 2), ([1, 2], 2), ([2, 1], 4), ([2, 2], 4)])
def test_a_tensor_has_the_width_of_the_option_it_follows(layout, options, width):
    workspace = Workspace(layout, 3)
    assert workspace.array("x1", options).shape == (3, width, 2, 2)
    assert workspace.array("x0", options).shape == (3, 2, 2, 2)
    assert workspace.array("x1", options) is workspace.array("x1", options)
    assert np.shares_memory(workspace.array("x1", [1, 1]), workspace.array("x1", [2, 2]))


def test_a_width_on_another_axis_than_the_first():
    tensor = PlanTensor(name="y", shape=(5, 7, 3), follows=1, axis=2, sizes=(2, 7))
    assert [tensor.shape_at([9, option]) for option in (1, 2)] == [(5, 2, 3), (5, 7, 3)]


def test_memory_grows_with_the_batch(layout):
    one, four = Workspace(layout, 1), Workspace(layout, 4)
    assert one.nbytes == sum(layout.slot_bytes)
    assert four.nbytes == 4 * one.nbytes
    assert not np.shares_memory(one.array("x0", [1, 1]), four.array("x0", [1, 1]))


def test_the_columns_are_where_the_agent_puts_its_options(layout):
    workspace = Workspace(layout, 2)
    for t, column in enumerate(workspace.columns):
        workspace.array(option_name(t), ()).fill(t + 5)
        assert column.tolist() == [t + 5] * 2


def test_a_bound_call_reads_and_writes_this_memory(layout):
    workspace = Workspace(layout, 2)
    engine = FakeEngine(lambda feeds: {"f": feeds["x"].sum(axis=(1, 2, 3))[:, None].repeat(4, axis=1)})
    bound = workspace.bind(engine, 12, ({"x": "x1"}, {"f": "f1"}), [2, 1])
    assert (bound.macs, bound.engine) == (12, engine)
    for value in (1, 3):
        workspace.array("x1", [2, 1]).fill(value)
        bound.run()
        assert workspace.array("f1", ()).tolist() == [[16 * value] * 4] * 2


def test_a_workspace_is_lent_again_to_a_batch_of_its_size_and_to_no_other(workspaces):
    with workspaces.lend(2) as first:
        pass
    with workspaces.lend(3) as other:
        assert other is not first
    with workspaces.lend(2) as again, workspaces.lend(3) as other_again:
        assert again is first
        assert other_again is other


def test_of_two_idle_ones_the_last_used_is_lent(workspaces):
    with workspaces.lend(2) as a, workspaces.lend(2) as b:
        assert a is not b
    with workspaces.lend(2) as again:
        assert again is a, "its memory is the one that the caches may still hold"


def test_a_run_that_fails_gives_its_workspace_back(workspaces):
    with pytest.raises(RuntimeError, match="mine"), workspaces.lend(2) as first:
        raise RuntimeError("mine")
    with workspaces.lend(2) as again:
        assert again is first


def test_two_runs_never_have_the_same_workspace(workspaces):
    taken, twice, barrier = set(), [], threading.Barrier(8)

    def work():
        barrier.wait(10)
        for _ in range(200):
            with workspaces.lend(2) as workspace:
                twice.extend([workspace] if id(workspace) in taken else [])
                taken.add(id(workspace))
                workspace.columns[0].fill(threading.get_ident())
                taken.remove(id(workspace))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert not twice
    assert not taken
    assert len({id(w) for w in workspaces._idle}) == len(workspaces._idle) <= 8


def lend_and_return(workspaces, batch):
    with workspaces.lend(batch) as workspace:
        return workspace


@pytest.fixture
def room_for_six(layout, monkeypatch):
    """Samples that idle workspaces may hold together."""
    monkeypatch.setattr(workspace_module, "_IDLE_BYTES", 6 * sum(layout.slot_bytes))


@pytest.mark.usefixtures("room_for_six")
def test_the_largest_idle_workspaces_go_first_over_the_limit_but_never_the_last_used(layout, workspaces):
    one, two, three = (lend_and_return(workspaces, batch) for batch in (1, 2, 3))
    assert workspaces.nbytes == 6 * sum(layout.slot_bytes)
    four = lend_and_return(workspaces, 4)
    assert workspaces._idle == [one, two, three, four]
    assert lend_and_return(workspaces, 1) is one
    assert workspaces._idle == [two, three, one]


@pytest.mark.usefixtures("room_for_six")
def test_one_larger_than_the_limit_is_kept_until_another_is_used_and_drives_none_out(workspaces):
    one = lend_and_return(workspaces, 1)
    large = lend_and_return(workspaces, 7)
    assert lend_and_return(workspaces, 7) is large
    assert lend_and_return(workspaces, 1) is one
    assert lend_and_return(workspaces, 7) is not large


@pytest.mark.usefixtures("room_for_six")
def test_what_is_lent_is_counted_and_not_dropped(layout, workspaces):
    with workspaces.lend(5) as large, workspaces.lend(4) as other:
        assert workspaces.nbytes == 9 * sum(layout.slot_bytes)
        large.columns[0].fill(1)
        other.columns[0].fill(2)
        assert (large.columns[0] == 1).all()
    assert workspaces.nbytes == 9 * sum(layout.slot_bytes)


def test_forget_drops_the_calls_of_one_engine_lent_or_idle(workspaces):
    gone, stays = FakeEngine(dict), FakeEngine(dict)
    idle = lend_and_return(workspaces, 1)
    with workspaces.lend(2) as lent:
        for workspace in (idle, lent):
            for place, engine in ((0, gone), (1, stays), (1, gone)):
                bound = workspace.bind(engine, 1, ({}, {}), [1, 1])
                workspace.calls[place][len(workspace.calls[place])] = bound
        workspaces.forget(gone)
        for workspace in (idle, lent):
            assert [[b.engine for b in calls.values()] for calls in workspace.calls[:2]] == [[], [stays]]


def test_clear_drops_what_is_idle(workspaces):
    first = lend_and_return(workspaces, 1)
    workspaces.clear()
    assert workspaces.nbytes == 0
    assert lend_and_return(workspaces, 1) is not first
