"""The run path of TensorRT, on stand-ins for the driver and the runtime that check addresses, shapes and order."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model

from fake_cuda import use_fake_cuda
from fake_tensorrt import NAMES_OF_10, SCRATCH_BYTES, fake_tensorrt
from rnp_deploy import Controller
from rnp_deploy.bundle.reading import open_bundle, read_manifest
from rnp_deploy.engines import trt
from rnp_deploy.engines.cuda_memory import CudaMemory
from rnp_deploy.engines.set_verification import compare_with_bundle
from rnp_deploy.errors import DeviceError, EngineError
from rnp_deploy.plan import Plan, plan_of_bundle

NAMES = ["chain", "bottleneck residual"]


class SetOfGraphs:
    """What the run path asks of an engine set; its "plans" are whole ONNX graphs with edges as TensorRT has them."""

    def __init__(self, case, *, half: bool) -> None:
        self.path = Path(case.path)
        self.manifest = read_manifest(case.path)
        self.half = half
        ends = {self.manifest.inputs[0].name, self.manifest.outputs[0].name}
        plan = plan_of_bundle(self.manifest)
        self.eights = {t.name for t in plan.tensors if len(t.shape) == 3 and half} - ends
        self.plan = Plan(tensors=tuple(map(self.lying, plan.tensors)), steps=plan.steps)
        self.engines = SimpleNamespace(plan=self.plan, backend="tensorrt")
        self.read: list[str] = []

    def lying(self, tensor):
        if tensor.name.startswith("agent/option"):
            return tensor.model_copy(update={"dtype": "int32"})
        if tensor.name not in self.eights:
            return tensor
        (c, h, w), eight = tensor.shape, lambda size: -(-size // 8) * 8
        sizes = tuple(map(eight, tensor.sizes))
        return tensor.model_copy(
            update={"shape": (h, w, eight(c)), "axis": 3, "sizes": sizes, "dtype": "float16"}
        )

    def graph(self, path: str) -> bytes:
        self.read.append(path)
        model = onnx.load_model(self.path / path, load_external_data=False)
        load_external_data_for_model(model, str(self.path))
        graph = model.graph
        for end, is_input in ((graph.input, True), (graph.output, False)):
            for info in end:
                if info.name == "option":
                    self.cast(graph, info, TensorProto.INT64, TensorProto.INT32, is_input)
                elif info.name in self.eights:
                    self.cast(graph, info, TensorProto.FLOAT, TensorProto.FLOAT16, is_input)
        return model.SerializeToString()

    def cast(self, graph, info, inside: int, outside: int, is_input: bool) -> None:
        inner = f"{info.name}.inside"
        for node in graph.node:
            values = node.input if is_input else node.output
            values[:] = [inner if name == info.name else name for name in values]
            if not is_input:
                node.input[:] = [inner if name == info.name else name for name in node.input]
        info.type.tensor_type.elem_type = outside
        if is_input:
            graph.node.insert(0, helper.make_node("Cast", [info.name], [inner], to=inside))
        else:
            graph.node.append(helper.make_node("Cast", [inner], [info.name], to=outside))


@pytest.fixture
def cuda(monkeypatch):
    return use_fake_cuda(monkeypatch)


@pytest.fixture
def make_controller(cuda):
    made = []

    def make(case, version="10.3.0", *, half=False, **settings):
        graphs, memory = SetOfGraphs(case, half=half), CudaMemory()
        open_engine = trt.opener(graphs, fake_tensorrt(cuda, version, rtx="RTX" in version), memory)
        made.append(Controller(graphs.manifest, open_engine, plan=graphs.plan, memory=memory, **settings))
        return made[-1]

    yield make
    cuda.lost = False
    for controller in made:
        controller.close()


def assert_close(got, expected, tolerance=1e-4):
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "half", "version"),
    [
        ("chain", False, "8.5.3"),
        ("chain", True, "10.3.0"),
        ("bottleneck residual", True, "8.5.3"),
        ("bottleneck residual", False, "11.4.0"),
        ("chain", True, "1.7.1 RTX"),
    ],
)
def test_given_options_agree_with_the_masked_reference(name, half, version, exported, make_controller):
    case = exported(name)
    controller = make_controller(case, version, half=half)
    for batch in (1, 5, 1, 5):  # later runs launch what the first ones captured
        images, options = case.images(batch, batch), case.options(batch, batch)
        got = controller.run(images.numpy(), options=options.numpy())
        with torch.no_grad():
            expected = case.network.run(images, options).numpy()
        assert_close(got.outputs, expected, 2e-2 if half else 1e-4)


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("policy", ["regroup", "serial", "round-up"])
@pytest.mark.parametrize("name", NAMES)
def test_the_agent_decides_as_on_the_cpu(name, policy, batch, exported, make_controller):
    case = exported(name)
    controller = make_controller(case)
    images = case.images(batch).numpy()
    with Controller.load(case.path, threads=1) as reference:
        for _ in range(3):
            got, expected = controller.run(images, policy=policy), reference.run(images, policy=policy)
            assert got.options.tolist() == expected.options.tolist()
            assert got.macs.tolist() == expected.macs.tolist()
            assert_close(got.outputs, expected.outputs)


def test_results_are_the_callers(exported, make_controller):
    case = exported("chain")
    controller = make_controller(case)
    images = case.images(2).numpy()
    first = controller.run(images[:1], options=case.options(1).numpy())
    kept = first.outputs.copy()
    controller.run(images[1:], options=case.options(1).numpy())
    assert first.outputs.tolist() == kept.tolist()


def test_a_branch_is_captured_once_and_then_launched(exported, make_controller, cuda):
    case = exported("chain")
    controller = make_controller(case)
    images, options = case.images(1).numpy(), case.options(1).numpy()
    pieces = len(controller.manifest.stages)
    for run in range(4):
        controller.run(images, options=options)
        assert len(cuda.graphs) == pieces
        assert cuda.launches == run * pieces


def test_only_decisions_and_outputs_wait_for_the_device(exported, make_controller, cuda):
    case = exported("chain")
    controller = make_controller(case)
    images = case.images(1).numpy()
    controller.run(images)
    before = cuda.waits
    controller.run(images)
    assert cuda.waits - before == len(controller.manifest.decisions) + 1


def test_memory_is_flat_over_many_runs(exported, make_controller, cuda):
    case = exported("chain")
    controller = make_controller(case)
    images = case.images(4).numpy()
    allocations = []
    for i in range(48):  # in turns of twelve
        controller.run(images[: 1 + i % 4], options=case.options(1 + i % 4, seed=i % 3).numpy())
        allocations.append((cuda.used_bytes, len(cuda.pinned), len(cuda.graphs)))
    assert allocations[24:] == [allocations[-1]] * 24


def test_all_contexts_share_one_scratch_buffer(exported, cuda):
    case = exported("chain")
    graphs, memory = SetOfGraphs(case, half=False), CudaMemory()
    open_engine = trt.opener(graphs, fake_tensorrt(cuda), memory)
    engines = [open_engine(branch.file) for branch in graphs.manifest.stages[1].branches]
    with memory.turn():
        contexts = [engine._context() for engine in (*engines, *engines)]
    buffers = {context._buffer.pointer for context in contexts}
    assert len(buffers) <= 2  # one for all, or the first and one twice its size
    assert max(context._buffer.nbytes for context in contexts) >= SCRATCH_BYTES


def test_without_capture_the_results_are_the_same(exported, make_controller, cuda, caplog):
    case = exported("chain")
    cuda.refuses_capture = True
    controller = make_controller(case)
    images, options = case.images(1).numpy(), case.options(1)
    for _ in range(3):
        got = controller.run(images, options=options.numpy()).outputs
    with torch.no_grad():
        assert_close(got, case.network.run(torch.from_numpy(images), options).numpy())
    assert "is run without a CUDA graph" in caplog.text


def test_batches_over_the_profile_are_run_in_parts(exported, make_controller):
    case = exported("chain")
    controller = make_controller(case, max_batch=4)
    images, options = case.images(11), case.options(11)
    got = controller.run(images.numpy(), options=options.numpy())
    with torch.no_grad():
        assert_close(got.outputs, case.network.run(images, options).numpy())
    with pytest.raises(EngineError, match=r"does not take .* in a batch of 65"):
        make_controller(case).run(case.images(65).numpy(), options=case.options(65).numpy())


def test_engines_are_preloaded_while_others_run(exported, make_controller):
    """A run waits for an engine while preloading waits for its turn: neither may wait for the other."""
    case = exported("chain")
    controller = make_controller(case)
    images = case.images(4).numpy()
    done = []

    def run():
        done.extend(controller.run(images, options=case.options(4, seed).numpy()) for seed in range(5))

    threads = [threading.Thread(target=work, daemon=True) for work in (run, controller.preload, run)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert len(done) == 10


def test_what_ran_unbound_holds_no_arrays(exported, make_controller, cuda):
    case = exported("chain")
    controller = make_controller(case)
    controller.run(case.images(6).numpy(), options=case.options(6).numpy())
    engines = [entry.engine for entry in controller._engines._entries.values()]
    unbound = [engine._unbound for engine in engines if engine._unbound is not None]
    assert unbound
    assert not any(context._arrays for context in unbound)


def test_memory_that_is_short_for_tensorrt_is_made_free(exported, cuda, monkeypatch):
    case = exported("chain")
    graphs, memory = SetOfGraphs(case, half=False), CudaMemory()
    library = fake_tensorrt(cuda)
    with memory.turn():
        del [memory.empty((1000,), np.dtype(np.uint8))][:]
    load = library.module.Runtime.deserialize_cuda_engine
    monkeypatch.setattr(
        library.module.Runtime,
        "deserialize_cuda_engine",
        lambda runtime, plan: None if any(memory._free.values()) else load(runtime, plan),
    )
    trt.opener(graphs, library, memory)("stages/00/full.onnx")
    assert not cuda.blocks


def test_two_controllers_in_two_threads(exported, make_controller):
    case = exported("chain")
    controllers = [make_controller(case) for _ in range(2)]
    images = case.images(3).numpy()
    expected = controllers[0].run(images).outputs
    right = []

    def run(controller):
        right.extend(np.allclose(controller.run(images).outputs, expected, atol=1e-5) for _ in range(10))

    threads = [threading.Thread(target=run, args=(controller,)) for controller in controllers * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 40


def test_a_lost_device_is_a_clear_error_every_time(exported, make_controller, cuda):
    case = exported("chain")
    controller = make_controller(case)
    images = case.images(1).numpy()
    controller.run(images)
    cuda.lost = True
    for _ in range(2):
        with pytest.raises(DeviceError, match="launch failure"):
            controller.run(images)


def test_short_memory_is_a_clear_error(exported, monkeypatch):
    case = exported("chain")
    cuda = use_fake_cuda(monkeypatch, limit_bytes=20_000)
    graphs, memory = SetOfGraphs(case, half=False), CudaMemory()
    open_engine = trt.opener(graphs, fake_tensorrt(cuda), memory)
    with (
        Controller(graphs.manifest, open_engine, plan=graphs.plan, memory=memory) as controller,
        pytest.raises(DeviceError, match=r"out of memory.*smaller max batch"),
    ):
        controller.run(case.images(64).numpy())


def test_an_evicted_engine_is_loaded_again(exported, make_controller):
    case = exported("chain")
    controller = make_controller(case, memory_budget_bytes=2000)
    images, options = case.images(6), case.options(6)
    for _ in range(2):
        got = controller.run(images.numpy(), options=options.numpy(), policy="serial")
        with torch.no_grad():
            assert_close(got.outputs, case.network.run(images, options).numpy())
    assert controller.memory().evictions


def test_an_engine_is_let_go_after_its_work_is_done(exported, make_controller, cuda):
    case = exported("chain")
    controller = make_controller(case)
    controller.run(case.images(1).numpy())
    waits = cuda.waits
    with controller._memory.turn():
        controller._runner.workspaces.forget(object())
    assert cuda.waits == waits + 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: {**arrays, "x": arrays["images"]}, "it has tensors .* and is given"),
        (lambda arrays: {name: array[:, :1] for name, array in arrays.items()}, "it takes float32"),
        (lambda arrays: {name: array.astype(np.float16) for name, array in arrays.items()}, "is float16"),
    ],
    ids=["unknown", "shape", "dtype"],
)
def test_arrays_that_do_not_fit_are_refused(change, words, exported, cuda):
    case = exported("chain")
    graphs, memory = SetOfGraphs(case, half=False), CudaMemory()
    engine = trt.opener(graphs, fake_tensorrt(cuda), memory)("stages/00/full.onnx")
    with memory.turn():
        feeds = {}
        for name, values in change({"images": case.images(2).numpy()}).items():
            feeds[name] = memory.empty(values.shape, values.dtype)
            memory.write(feeds[name], values)
        with pytest.raises(EngineError, match=words):
            engine.run(feeds)
        engine.close()
        with pytest.raises(EngineError, match="after close"):
            engine.bind({}, {})


def test_what_tensorrt_cannot_load_is_named(exported, cuda):
    case = exported("chain")
    graphs, memory = SetOfGraphs(case, half=False), CudaMemory()
    graphs.graph = lambda path: b"not a plan"
    open_engine = trt.opener(graphs, fake_tensorrt(cuda), memory)
    with pytest.raises(EngineError, match=r"stages/00/full.onnx: TensorRT 10.3.0 cannot load it"):
        open_engine("stages/00/full.onnx")


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "HWC8"])
def test_a_set_is_compared_with_its_bundle(half, exported, cuda):
    case = exported("chain")
    graphs, memory = SetOfGraphs(case, half=half), CudaMemory()
    open_engine = trt.opener(graphs, fake_tensorrt(cuda), memory)
    bundle = open_bundle(case.path)
    compared = compare_with_bundle(bundle, graphs, open_engine, 3, memory=memory, tolerance=2e-2)
    assert compared["decisions_equal"] >= 0.95 * compared["decisions"] > 0
    assert compared["max_deviation"] <= (2e-2 if half else 1e-4)
    assert (compared["max_deviation"] > 0) == half


@pytest.mark.parametrize("swapped", ["stages/01/full-out{}.onnx", "stages/02/in1-out{}.onnx"])
def test_a_set_with_a_wrong_branch_is_refused(swapped, exported, cuda):
    case = exported("chain")
    graphs, memory = SetOfGraphs(case, half=False), CudaMemory()
    right = graphs.graph
    other = onnx.ModelProto.FromString(right(swapped.format(2)))
    for tensor in other.graph.initializer:
        if tensor.name.endswith("weight"):
            tensor.raw_data = bytes(len(tensor.raw_data))
    graphs.graph = lambda path: other.SerializeToString() if path == swapped.format(2) else right(path)
    open_engine = trt.opener(graphs, fake_tensorrt(cuda), memory)
    with pytest.raises(
        EngineError, match=r"outputs differ from the bundle's by .* tensorrt made something else"
    ):
        compare_with_bundle(open_bundle(case.path), graphs, open_engine, 3, memory=memory)


def test_tensorrt_has_every_name_of_the_stand_in():
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    for kind, names in NAMES_OF_10.items():
        missing = names - set(dir(getattr(tensorrt_rtx, kind)))
        assert not missing, kind
