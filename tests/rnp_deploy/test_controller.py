"""The controller over fake engines: who is asked, in which order, with what."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

from bundles import small_manifest
from rnp_deploy import Controller
from rnp_deploy.errors import ControllerClosedError, EngineError
from small_network import AGENT, BRANCHES, Network, decided, expected_outputs, images_of


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def controller(network):
    with Controller(small_manifest(), network.open) as controller:
        yield controller


def test_the_agent_decides_per_sample_and_results_come_in_input_order(controller):
    ids = [6, 1, 0, 3, 2, 5, 1]
    result = controller.run(images_of(ids))
    assert result.options.tolist() == decided(ids)
    assert result.options.dtype == np.int64
    assert result.outputs.tolist() == expected_outputs(ids, decided(ids))
    assert result.outputs.dtype == np.float32


def test_samples_of_one_branch_run_together_and_no_other_branch_runs(network, controller):
    options = [[2, 1], [1, 1], [2, 1], [2, 2], [1, 1]]
    result = controller.run(images_of([10, 11, 12, 13, 14]), options=options)
    assert result.outputs.tolist() == expected_outputs([10, 11, 12, 13, 14], options)
    seen = {
        path: [run["x0"][:, 0, 0, 0].tolist() for run in network.runs(path)]
        for path in network.opened
        if path > "s1"
    }
    assert seen == {
        "s1/1.onnx": [[11, 14]],
        "s1/2.onnx": [[10, 12, 13]],
        "s2/1-1.onnx": [[11, 14]],
        "s2/2-1.onnx": [[10, 12]],
        "s2/2-2.onnx": [[13]],
    }


def test_given_options_skip_the_agent(network, controller):
    given = np.array([[1, 2], [2, 2]])
    result = controller.run(images_of([0, 1]), options=given)
    assert not set(network.opened) & set(AGENT)
    assert result.options.tolist() == given.tolist()
    assert not np.shares_memory(result.options, given)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64])
def test_any_integer_type_of_options_will_do(controller, dtype):
    result = controller.run(images_of([5]), options=np.array([[2, 1]], dtype))
    assert result.outputs.tolist() == expected_outputs([5], [[2, 1]])


def test_the_state_starts_at_zero_and_goes_from_step_to_step_sample_by_sample(network, controller):
    controller.run(images_of([3, 0, 5]), penalty=0.5)
    first, second = network.runs(AGENT[0])[0], network.runs(AGENT[1])[0]
    assert first["state"].tolist() == [[0, 0, 0]] * 3
    assert second["state"].tolist() == [[1, 3, 0.5], [1, 0, 0.5], [1, 5, 0.5]]
    assert second["features"][:, 0].tolist() == [3, 0, 5]
    assert second["features"][:, 1].tolist() == [2, 1, 2]
    controller.run(images_of([7]))
    assert network.runs(AGENT[0])[1]["state"].tolist() == [[0, 0, 0]], "state of an earlier run was kept"


@pytest.mark.parametrize(
    ("penalty", "seen"),
    [
        (None, [0.25, 0.25]),
        (0.5, [0.5, 0.5]),
        (-3, [-3, -3]),
        ([0.5, 2.0], [0.5, 2.0]),
        (np.array([0.5, 2.0], np.float64), [0.5, 2.0]),
        (np.float32(1.5), [1.5, 1.5]),
    ],
)
def test_the_penalty_reaches_every_step(network, controller, penalty, seen):
    controller.run(images_of([0, 1]), penalty=penalty)
    for path in AGENT:
        fed = network.runs(path)[0]["penalty"]
        assert fed.tolist() == seen
        assert fed.dtype == np.float32
        assert fed.flags.c_contiguous


def test_engines_get_contiguous_float32(network, controller):
    wide = np.repeat(images_of([0, 1, 2, 3]), 2, axis=3)[::-1, :, :, ::2]
    assert not wide.flags.c_contiguous
    result = controller.run(wide)
    assert result.outputs[:, 0].tolist() == [3, 2, 1, 0]
    for engine in network.engines.values():
        for array in (array for run in engine.runs for array in run.values()):
            assert array.flags.c_contiguous
            assert array.dtype == np.float32


def test_macs_are_those_of_the_branches_taken(controller):
    options = [[1, 1], [2, 1], [1, 2], [2, 2]]
    result = controller.run(images_of(range(4)), options=options)
    assert result.macs.tolist() == [1000 + 100 * a + 10 * a + b for a, b in options]
    assert result.macs.dtype == np.int64


def test_engines_are_opened_when_first_needed_and_once(network, controller):
    assert network.opened == []
    for _ in range(3):
        controller.run(images_of([0]))
    assert network.opened == ["s0/full.onnx", "agent/0.onnx", "s1/1.onnx", "agent/1.onnx", "s2/1-1.onnx"]
    controller.run(images_of([1]))
    assert network.opened[5:] == ["s1/2.onnx", "s2/2-1.onnx"]


def test_preload_opens_every_engine_once(network, controller):
    controller.preload()
    assert sorted(network.opened) == sorted(AGENT + BRANCHES)
    controller.preload()
    controller.run(images_of(range(4)))
    assert len(network.opened) == len(AGENT + BRANCHES)


def test_close_closes_engines_and_refuses_what_comes_after(network, controller):
    controller.run(images_of([0, 3]))
    controller.close()
    controller.close()
    assert all(engine.closed for engine in network.engines.values())
    for call in (lambda: controller.run(images_of([0])), controller.preload):
        with pytest.raises(ControllerClosedError, match="closed; load it again"):
            call()


def test_leaving_the_block_closes_even_after_an_error(network):
    with pytest.raises(RuntimeError, match="mine"), Controller(small_manifest(), network.open) as controller:
        controller.preload()
        raise RuntimeError("mine")
    assert all(engine.closed for engine in network.engines.values())


def test_close_waits_for_the_runs_under_way(network):
    entered, go_on, results = threading.Event(), threading.Event(), []
    stem = network.stem

    def slow_stem(name, feeds):
        entered.set()
        assert go_on.wait(10)
        return stem(name, feeds)

    network.stem = slow_stem
    controller = Controller(small_manifest(), network.open)
    running = threading.Thread(target=lambda: results.append(controller.run(images_of([1]))))
    closing = threading.Thread(target=controller.close)
    running.start()
    assert entered.wait(10)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    assert not network.engines["s0/full.onnx"].closed
    with pytest.raises(ControllerClosedError):
        controller.run(images_of([2]))
    go_on.set()
    running.join(10)
    closing.join(10)
    assert results[0].outputs.tolist() == expected_outputs([1], [[2, 1]])
    assert all(engine.closed for engine in network.engines.values())


def test_many_threads_get_their_own_results_and_share_the_engines(network):
    threads, rounds = 8, 20
    barrier = threading.Barrier(threads)
    wrong: list[object] = []
    open_engine = network.open

    def open_slowly(path):
        time.sleep(0.02)  # so that every thread asks before the first has opened it
        return open_engine(path)

    controller = Controller(small_manifest(), open_slowly)

    def work(seed):
        generator = np.random.default_rng(seed)
        barrier.wait(10)
        for _ in range(rounds):
            ids = generator.integers(0, 1000, generator.integers(1, 9)).tolist()
            try:
                result = controller.run(images_of(ids), penalty=seed)
                if result.outputs.tolist() != expected_outputs(ids, decided(ids)):
                    wrong.append(ids)
            except Exception as err:  # noqa: BLE001 - reported by the assertion below
                wrong.append(err)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    controller.close()
    assert not wrong
    assert set(Counter(network.opened).values()) == {1}
    assert sum(len(engine.runs) for path, engine in network.engines.items() if path == "s0/full.onnx") == 160


def failing(path):
    def compute(feeds):
        raise EngineError(f"{path} failed")

    return compute


@pytest.mark.parametrize("path", ["agent/1.onnx", "s1/2.onnx"])
def test_an_engine_error_reaches_the_caller_and_the_controller_goes_on(network, controller, path):
    controller.run(images_of([1]))
    works, network.engines[path]._compute = network.engines[path]._compute, failing(path)
    with pytest.raises(EngineError, match=f"{path} failed"):
        controller.run(images_of([1]))
    network.engines[path]._compute = works
    assert controller.run(images_of([1])).outputs.tolist() == expected_outputs([1], [[2, 1]])
    controller.close()


def test_an_engine_that_cannot_be_opened_is_tried_again_later(network):
    broken = {"s1/2.onnx"}

    def open_engine(path):
        if path in broken:
            raise EngineError(f"{path} cannot be loaded")
        return network.open(path)

    with Controller(small_manifest(), open_engine) as controller:
        with pytest.raises(EngineError, match=r"s1/2\.onnx cannot be loaded"):
            controller.run(images_of([1]))
        assert controller.run(images_of([0])).options.tolist() == [[1, 1]]
        broken.clear()
        assert controller.run(images_of([1])).options.tolist() == [[2, 1]]
