"""The controller over fake engines: who is asked, in which order, with what."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

from bundles import small_manifest
from rnp_deploy import Controller
from rnp_deploy.engines.fake import FakeEngine
from rnp_deploy.errors import BundleError, ControllerClosedError, EngineError, InputError

AGENT = ["agent/0.onnx", "agent/1.onnx"]
BRANCHES = [
    "s0/full.onnx",
    "s1/1.onnx",
    "s1/2.onnx",
    "s2/1-1.onnx",
    "s2/1-2.onnx",
    "s2/2-1.onnx",
    "s2/2-2.onnx",
]


class Network:
    """What the fake engines compute.

    An image is filled with its id. x1 records the branch of stage 1, the outputs are (id,
    branch of stage 1, branch of stage 2). Bit t of the id, plus one, is the option the agent
    takes at decision t; its state counts the steps in the first value and sums ids in the
    second.
    """

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.engines: dict[str, FakeEngine] = {}

    def open(self, path):
        self.opened.append(path)
        folder, name = path.removesuffix(".onnx").split("/")
        compute = {"agent": self.agent, "s0": self.stem, "s1": self.middle, "s2": self.head}[folder]
        self.engines[path] = FakeEngine(lambda feeds: compute(name, feeds))
        return self.engines[path]

    def runs(self, path):
        return self.engines[path].runs

    def agent(self, name, feeds):
        ids = feeds["features"][:, 0]
        state = feeds["state"] + np.stack([np.ones_like(ids), ids, feeds["penalty"]], axis=1)
        option = (ids.astype(np.int64) >> int(name) & 1) + 1
        return {"q_values": np.zeros((len(ids), 2), np.float32), "option": option, "next_state": state}

    def stem(self, name, feeds):
        x0 = np.repeat(feeds["images"], 2, axis=1)
        return {"x0": x0, "f0": x0[:, :, 0, 0].copy()}

    def middle(self, name, feeds):
        ids = feeds["x0"][:, 0, 0, 0]
        width = 2 * int(name)
        x1 = np.zeros((len(ids), width, 2, 2), np.float32)
        x1[:, 0], x1[:, 1] = ids[:, None, None], float(name)
        f1 = np.zeros((len(ids), 4), np.float32)
        f1[:, :2] = x1[:, :2, 0, 0]
        return {"x1": x1, "f1": f1}

    def head(self, name, feeds):
        ids, x1 = feeds["x0"][:, 0, 0, 0], feeds["x1"][:, :2, 0, 0]
        assert (ids == x1[:, 0]).all(), "tensors of different samples were brought together"
        branch = np.full_like(ids, float(name.replace("-", "")))
        return {"outputs": np.stack([ids, x1[:, 1], branch], axis=1)}


def images_of(ids):
    return np.repeat(np.asarray(ids, np.float32), 4).reshape(len(ids), 1, 2, 2)


def expected_outputs(ids, options):
    return [[i, a, 10 * a + b] for i, (a, b) in zip(ids, options, strict=True)]


def decided(ids):
    return [[(i & 1) + 1, (i >> 1 & 1) + 1] for i in ids]


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


def spoilt(value):
    images = images_of([0, 1, 2])
    images[1, 0, 1, 1] = value
    return images


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([[[[0.0, 0.0], [0.0, 0.0]]]], ["list", "numpy array", "float32 [N, 1, 2, 2]"]),
        (None, ["NoneType", "numpy array"]),
        (images_of([0]).astype(np.float64), ["float64", "float32 [N, 1, 2, 2]"]),
        (images_of([0]).astype(">f4"), [">f4", "float32 [N, 1, 2, 2]"]),
        (images_of([0]).astype(np.uint8), ["uint8", "float32"]),
        (images_of([0]).astype(object), ["object", "float32"]),
        (images_of([0])[0], ["(1, 2, 2)", "[N, 1, 2, 2]"]),
        (np.zeros((2, 3, 2, 2), np.float32), ["(2, 3, 2, 2)", "[N, 1, 2, 2]"]),
        (np.zeros((2, 1, 2, 3), np.float32), ["(2, 1, 2, 3)", "[N, 1, 2, 2]"]),
        (np.zeros((), np.float32), ["()", "[N, 1, 2, 2]"]),
        (np.zeros((0, 1, 2, 2), np.float32), ["empty", "at least one"]),
        (spoilt(np.nan), ["image 1", "NaN"]),
        (spoilt(np.inf), ["image 1", "infinity"]),
        (spoilt(-np.inf), ["image 1", "infinity"]),
    ],
)
def test_bad_images(network, controller, images, words):
    with pytest.raises(InputError) as caught:
        controller.run(images)
    assert isinstance(caught.value, ValueError)
    assert all(word in str(caught.value) for word in words)
    assert network.opened == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([1, 2], ["(2,)", "(2, 2)"]),
        ([[1, 2]], ["(1, 2)", "(2, 2)"]),
        ([[1], [2]], ["(2, 1)", "(2, 2)"]),
        ([[1, 2], [1]], ["options", "(2, 2)"]),
        ([], ["(0,)", "(2, 2)"]),
        (3, ["()", "(2, 2)"]),
        (np.ones((2, 2)), ["float64", "integers"]),
        (np.ones((2, 2), bool), ["bool", "integers"]),
        ([["1", "2"], ["1", "2"]], ["integers"]),
        ([[0, 1], [1, 1]], ["0..1", "1..2"]),
        ([[1, 3], [1, 1]], ["1..3", "1..2"]),
        ([[-1, 1], [1, 1]], ["-1..1", "1..2"]),
        (np.full((2, 2), 2**63 + 1, np.uint64), ["9223372036854775809", "1..2"]),
    ],
    ids=str,
)
def test_bad_options(network, controller, options, words):
    with pytest.raises(InputError) as caught:
        controller.run(images_of([0, 1]), options=options)
    assert all(word in str(caught.value) for word in words)
    assert network.opened == []


@pytest.mark.parametrize(
    ("penalty", "words"),
    [
        (float("nan"), ["penalty", "not finite"]),
        (float("inf"), ["penalty", "not finite"]),
        ([0.1, float("-inf")], ["penalty", "not finite"]),
        ("cheap", ["penalty is 'cheap'", "one number, or one per image"]),
        ("0.5", ["penalty is '0.5'", "one number, or one per image"]),
        (1j, ["penalty is 1j", "one number, or one per image"]),
        ({}, ["penalty is {}", "one number, or one per image"]),
        ([0.1, 0.2, 0.3], ["penalty is [0.1, 0.2, 0.3]", "one per image"]),
        ([[0.1], [0.2]], ["penalty is [[0.1], [0.2]]", "one per image"]),
        ([[0.1, 0.2], [0.1]], ["penalty", "one per image"]),
        ([], ["penalty is []", "one per image"]),
    ],
    ids=str,
)
def test_bad_penalty(network, controller, penalty, words):
    with pytest.raises(InputError) as caught:
        controller.run(images_of([0, 1]), penalty=penalty)
    assert all(word in str(caught.value) for word in words)
    assert network.opened == []


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"backend": "caffe"}, InputError, ["'caffe'", "'onnxruntime'"]),
        ({"backend": "tensorrt"}, EngineError, ["'tensorrt'", "'onnxruntime'"]),
        ({"backend": "torch"}, EngineError, ["'torch'", "'onnxruntime'"]),
        ({"device": "cuda"}, EngineError, ["'cuda'", "'cpu'"]),
        ({"preload": "some"}, InputError, ["'some'", "'none'", "'all'"]),
        ({"threads": 0}, InputError, ["threads is 0"]),
        ({"threads": -2}, InputError, ["threads is -2"]),
        ({"threads": 1.5}, InputError, ["threads is 1.5"]),
        ({"threads": True}, InputError, ["threads is True"]),
    ],
    ids=str,
)
def test_bad_arguments_of_load(exported, arguments, kind, words):
    with pytest.raises(kind) as caught:
        Controller.load(exported("chain").path, **arguments)
    assert all(word in str(caught.value) for word in words)


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(BundleError, match="nowhere does not exist"):
        Controller.load(tmp_path / "nowhere")
