"""Torch engines: what they compute, what they refuse, and who is named; and CUDA's path without CUDA."""

from __future__ import annotations

import contextlib
import gc
import sys
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import torch

from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines import ort
from rnp_deploy.engines.torch_engine import CudaPlace, Place, TorchEngine, opener
from rnp_deploy.engines.torch_graph import TorchGraph, Weights
from rnp_deploy.errors import EngineError, InputError, IntegrityError, MissingRuntimeError

STEM = "stages/00/full.onnx"
WHERE = "stages/07/full.onnx"


@pytest.fixture
def bundle(exported):
    return open_bundle(exported("chain").path)


@pytest.fixture
def images(exported):
    return exported("chain").images(3).numpy()


def graph_bytes(kind="Add", reads="x x", element=1, sizes=("N", 2), writes="y"):
    ends = [onnx.helper.make_tensor_value_info(name, element, sizes) for name in ("x", *writes.split())]
    node = onnx.helper.make_node(kind, reads.split(), writes.split(), name=f"the {kind}")
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()


def engine_of(place, graph):
    return TorchEngine(TorchGraph(graph, place.weights, place.device, WHERE), place, WHERE)


@pytest.fixture
def doubler(tmp_path):
    """y = x + x."""
    return engine_of(Place(torch.device("cpu"), tmp_path), graph_bytes())


def pair(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def read_only():
    array = pair(2, 2)
    array.flags.writeable = False
    return array


def test_a_graph_gives_what_onnxruntime_gives(bundle, images):
    expected = ort.opener(bundle, 1)(STEM).run({"images": images})
    got = opener(bundle, "cpu")(STEM).run({"images": images})
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5)


def test_the_outputs_are_the_callers(tmp_path):
    """A view of the input, of another output, and of a weight that all runs share."""
    place = Place(torch.device("cpu"), tmp_path)
    same = engine_of(place, graph_bytes("Identity", "x"))
    x = pair(1, 2)
    y = same.run({"x": x})["y"]
    x.fill(7)
    assert y.tolist() == [[1, 1]]
    assert y.flags.writeable


def test_threads_of_the_caller_may_share_an_engine(bundle, images):
    engine = opener(bundle, "cpu")(STEM)
    alone = [engine.run({"images": images * i})["features_1_pooled"] for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: engine.run({"images": images * i})["features_1_pooled"], range(8)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_bound_call_reads_and_writes_the_memory_given(doubler):
    x, y = pair(2, 2), pair(2, 2)
    call = doubler.bind({"x": x}, {"y": y})
    assert (y == 1).all(), "binding is no run"
    for value in (3, 5):
        x.fill(value)
        call()
        assert (x == value).all()
        assert (y == 2 * value).all()


def test_only_the_outputs_that_are_wanted_are_written(bundle, images):
    engine = opener(bundle, "cpu")(STEM)
    expected = engine.run({"images": images})["features_1_pooled"]
    pooled = np.zeros_like(expected)
    engine.bind({"images": images}, {"features_1_pooled": pooled})()
    assert pooled.tolist() == expected.tolist()


def test_an_output_may_be_bound_onto_the_memory_of_its_input(doubler):
    x = np.array([[1, 2], [3, 4]], np.float32)
    call = doubler.bind({"x": x}, {"y": x})
    call()
    call()
    assert x.tolist() == [[4, 8], [12, 16]]


def test_a_bound_call_keeps_its_memory_and_works_after_close(doubler):
    x, y = pair(1, 2), pair(1, 2)
    alive = [weakref.ref(x), weakref.ref(y)]
    call = doubler.bind({"x": x}, {"y": y})
    doubler.close()
    doubler.close()
    del x, y
    gc.collect()
    call()
    assert alive[1]().tolist() == [[2, 2]]
    del call
    gc.collect()
    assert [kept() for kept in alive] == [None, None]
    for use in (lambda: doubler.bind({"x": pair(1, 2)}, {}), lambda: doubler.run({"x": pair(1, 2)})):
        with pytest.raises(EngineError, match=rf"{WHERE} was (run|bound) after close"):
            use()


def test_what_is_read_only_is_read_again_each_time_and_without_a_warning(doubler):
    x, y = pair(2, 2), pair(2, 2)
    seen = x.view()
    seen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call = doubler.bind({"x": seen}, {"y": y})
        assert doubler.run({"x": read_only()})["y"].tolist() == [[2, 2]] * 2
    x.fill(4)
    call()
    assert (y == 8).all()


@pytest.mark.parametrize(("element", "half"), [(16, torch.bfloat16), (10, torch.float16)])
def test_edges_of_half_precision(tmp_path, element, half):
    """numpy knows no bfloat16: its bits lie in uint16."""
    engine = engine_of(Place(torch.device("cpu"), tmp_path), graph_bytes(element=element))

    def bits(numbers):
        tensor = torch.tensor([numbers], dtype=half)
        return (tensor.view(torch.uint16) if half is torch.bfloat16 else tensor).numpy()

    x, y = bits([1.5, -3]), bits([0, 0])
    assert np.array_equal(engine.run({"x": x})["y"], bits([3, -6]))
    assert engine.run({"x": x})["y"].dtype == x.dtype
    engine.bind({"x": x}, {"y": y})()
    assert np.array_equal(y, bits([3, -6]))
    with pytest.raises(EngineError, match=f"'x' is a float32; it takes a {x.dtype}"):
        engine.run({"x": pair(1, 2)})


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ({}, {"y": pair(2, 2)}, ["'x' is given no array"]),
        ({"z": pair(2, 2)}, {"y": pair(2, 2)}, ["'z'", "['x']"]),
        ({"x": pair(2, 2), "z": pair(2, 2)}, {"y": pair(2, 2)}, ["'z'", "['x']"]),
        ({"x": pair(2, 2)}, {"z": pair(2, 2)}, ["'z'", "['y']"]),
        ({"x": pair(2, 2, dtype=np.float64)}, {"y": pair(2, 2)}, ["'x'", "float64", "float32"]),
        ({"x": pair(2, 2)}, {"y": pair(2, 2, dtype=np.int64)}, ["'y'", "int64", "float32"]),
        ({"x": pair(2, 4)[:, ::2]}, {"y": pair(2, 2)}, ["'x'", "not C-contiguous"]),
        ({"x": pair(2, 2)}, {"y": pair(2, 4)[:, ::2]}, ["'y'", "not C-contiguous"]),
        ({"x": pair(2, 2)}, {"y": read_only()}, ["'y'", "read-only"]),
        ({"x": pair(2, 3)}, {"y": pair(2, 2)}, ["'x'", "[2, 3]", "[None, 2]"]),
        ({"x": pair(2)}, {"y": pair(2, 2)}, ["'x'", "[2]", "[None, 2]"]),
        ({"x": np.array([[None, 1]])}, {"y": pair(2, 2)}, ["'x'", "object"]),
        ({"x": "text"}, {"y": pair(2, 2)}, ["'x' is given no array"]),
    ],
    ids=["nothing", "other input", "one more input", "other output", "input type", "output type",
         "strided input", "strided output", "read-only output", "size", "rank", "objects", "no array"],
)  # fmt: skip
def test_what_cannot_be_bound_names_the_graph_and_the_tensor(doubler, inputs, outputs, words):
    with pytest.raises(EngineError, match=f"{WHERE}: torch cannot bind it") as caught:
        doubler.bind(inputs, outputs)
    assert [word for word in words if word not in str(caught.value)] == []
    if words[0].startswith("'x'") or "['x']" in words:
        with pytest.raises(EngineError, match=f"{WHERE}: torch failed"):
            doubler.run(inputs)


def test_an_output_of_another_batch_size_is_told_and_not_broadcast_to(doubler):
    y = pair(3, 2)
    call = doubler.bind({"x": pair(1, 2)}, {"y": y})
    with pytest.raises(EngineError, match=rf"{WHERE}.*'y' is \[1, 2\]; its array \[3, 2\]"):
        call()
    assert (y == 1).all()


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_bad_threads(bundle, threads):
    with pytest.raises(InputError, match="at least 1") as caught:
        opener(bundle, "cpu", threads)
    assert repr(threads) in str(caught.value)


def test_threads_are_set_for_the_process_or_left(bundle, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    opener(bundle, "cpu")
    opener(bundle, "cpu", 3)
    assert asked == [3]


def test_without_torch_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "rnp_deploy.engines.torch_engine")
    monkeypatch.delattr("rnp_deploy.engines.torch_engine")
    with pytest.raises(MissingRuntimeError, match=r"rnp-deploy\[torch\]"):
        from rnp_deploy.engines import torch_engine  # noqa: F401


@pytest.mark.parametrize(
    ("device", "built", "words"),
    [
        ("cuda", None, ["'cuda'", "built without CUDA", "'cpu'"]),
        ("cuda:1", "12.6", ["'cuda:1'", "CUDA 12.6", "driver", "nvidia-smi"]),
        ("gpu", None, ["'gpu'", "none of torch's"]),
        (3.5, None, ["3.5", "none of torch's"]),
        ("mps", None, ["'mps'", "cannot be used"]),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_the_reason(bundle, monkeypatch, device, built, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    with pytest.raises(EngineError) as caught:
        opener(bundle, device)
    assert [word for word in words if word not in str(caught.value)] == []


def test_auto_takes_the_cpu_where_there_is_no_gpu(bundle, images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert opener(bundle)(STEM).run({"images": images})["features_1_pooled"].shape[0] == 3


def test_a_bundle_that_changed_after_loading_is_refused(exported, tmp_path):
    import shutil

    folder = shutil.copytree(exported("chain").path, tmp_path / "bundle")
    open_engine = opener(open_bundle(folder), "cpu")
    with (folder / "weights.bin").open("r+b") as stream:
        stream.write(b"\1\2\3\4")
    with pytest.raises(IntegrityError, match="replaced"):
        open_engine(STEM)


def test_weights_are_mapped_once_for_all_engines_of_an_opener(bundle, monkeypatch):
    mapped = []
    real = np.memmap
    monkeypatch.setattr(np, "memmap", lambda *given, **named: mapped.append(given) or real(*given, **named))
    open_engine = opener(bundle, "cpu")
    for path in bundle.graphs:
        open_engine(path)
    assert len(mapped) == 1


def test_no_memory_left_says_who_holds_it_and_what_to_try(doubler, monkeypatch):
    other = engine_of(doubler._place, graph_bytes())
    other.close()

    def full(*_):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(TorchGraph, "__call__", full)
    for use in (lambda: doubler.run({"x": pair(1, 2)}), doubler.bind({"x": pair(1, 2)}, {"y": pair(1, 2)})):
        with pytest.raises(
            EngineError, match=f"{WHERE}.*no memory left, 1 engines being open.*2 GiB"
        ) as caught:
            use()
        assert "memory_budget_bytes" in str(caught.value)


def test_no_memory_left_for_a_graph_that_is_opened(bundle, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(Weights, "_read", full)
    with pytest.raises(EngineError, match=f"{STEM}.*no memory left"):
        opener(bundle, "cpu")(STEM)
    monkeypatch.undo()
    monkeypatch.setattr(torch.Tensor, "contiguous", full)
    with pytest.raises(EngineError, match=r"stages/02/in1-out1\.onnx.*no memory left"):
        opener(bundle, "cpu")("stages/02/in1-out1.onnx")


class Staging(Place):
    """A device whose memory the host cannot reach, played by the CPU; ``log`` tells what was asked of it."""

    def __init__(self, folder):
        super().__init__(torch.device("cpu"), folder)
        self.log = []

    def reaches(self, tensor):
        return False

    def pinned(self, host):
        self.log.append("pin")
        return torch.empty_like(host)

    def first_call(self, compute):
        self.log.append("capture")
        compute()
        return lambda: (self.log.append("replay"), compute())

    def synchronize(self):
        self.log.append("synchronize")


def test_arrays_of_the_host_are_copied_around_a_captured_call(tmp_path):
    place = Staging(tmp_path)
    engine = engine_of(place, graph_bytes())
    x, y = pair(2, 2), pair(2, 2)
    call = engine.bind({"x": x}, {"y": y})
    for value in (3, 5, 7):
        x.fill(value)
        call()
        assert (y == 2 * value).all()
        assert (x == value).all()
    calls = ["capture", "synchronize", "replay", "synchronize", "replay", "synchronize"]
    assert place.log == ["pin", *calls], "page-locked memory is for the output alone"


class FakeCuda:
    """What CudaPlace asks of torch.cuda."""

    def __init__(self, monkeypatch):
        self.log = []
        cuda = self

        class Stream:
            def __init__(self, *given):
                cuda.log.append(("stream", *given))

            def synchronize(self):
                cuda.log.append("synchronize")

        class Graph:
            def capture_begin(self, pool, capture_error_mode):
                cuda.log.append(("begin", pool, capture_error_mode))

            def capture_end(self):
                cuda.log.append("end")

            def replay(self):
                cuda.log.append("replay")

        for name, value in (("Stream", Stream), ("ExternalStream", Stream), ("CUDAGraph", Graph),
                            ("graph_pool_handle", lambda: "pool"),
                            ("stream", lambda stream: contextlib.nullcontext())):  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)


def test_the_first_call_computes_and_is_captured_and_later_ones_are_replayed(tmp_path, monkeypatch):
    cuda, device, runs = FakeCuda(monkeypatch), torch.device("cpu"), []
    place = CudaPlace(device, tmp_path, 1234)
    engine = engine_of(place, graph_bytes())
    call = engine.bind({"x": pair(1, 2)}, {"y": pair(1, 2)})
    run = TorchGraph.__call__
    monkeypatch.setattr(TorchGraph, "__call__", lambda *given: runs.append(1) or run(*given))
    for _ in range(3):
        call()
    begin = ("begin", "pool", "thread_local")
    assert cuda.log == [("stream", 1234, device), "synchronize", begin, "end", "replay", "replay"]
    assert len(runs) == 2, "once for its results, once to be captured"


def precision():
    """Torch's settings that make it compute less exactly, and two that are the caller's alone."""
    cublas, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return [
        cublas.fp32_precision, cudnn.conv.fp32_precision, cublas.allow_fp16_reduced_precision_reduction,
        cublas.allow_bf16_reduced_precision_reduction, cudnn.benchmark, cudnn.deterministic,
    ]  # fmt: skip


@pytest.fixture(params=["legacy", "new"])
def a_callers_settings(request, monkeypatch):
    """Fast ones, by either of torch's APIs: after the new one, torch refuses to say what allow_tf32 is."""
    cublas = torch.backends.cuda.matmul
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    if request.param == "legacy":
        cublas.allow_tf32 = True
    else:
        cublas.fp32_precision = "tf32"
    yield
    cublas.allow_tf32 = False


@pytest.mark.usefixtures("a_callers_settings")
@pytest.mark.parametrize("use", ["run", "bind"])
def test_types_are_computed_as_they_are_and_the_callers_settings_put_back(tmp_path, monkeypatch, use):
    FakeCuda(monkeypatch)
    before, seen, run = precision(), [], TorchGraph.__call__
    assert before == ["tf32", "tf32", True, True, True, True]
    monkeypatch.setattr(TorchGraph, "__call__", lambda *given: seen.append(precision()) or run(*given))
    engine = engine_of(CudaPlace(torch.device("cpu"), tmp_path, None), graph_bytes())
    x, y = pair(1, 2), pair(1, 2)
    engine.run({"x": x}) if use == "run" else engine.bind({"x": x}, {"y": y})()
    assert seen == [["ieee", "ieee", False, False, True, True]] * (1 if use == "run" else 2)
    monkeypatch.setattr(TorchGraph, "__call__", lambda *given: 1 / 0)
    with pytest.raises(EngineError):
        engine.run({"x": x})
    assert precision() == before


def test_a_capture_that_fails_is_ended_and_named(tmp_path, monkeypatch):
    cuda = FakeCuda(monkeypatch)
    place = CudaPlace(torch.device("cpu"), tmp_path, None)
    call = engine_of(place, graph_bytes()).bind({"x": pair(1, 2)}, {"y": pair(1, 2)})
    run, runs = TorchGraph.__call__, []

    def failing(*given):
        runs.append(1)
        if len(runs) == 2:
            raise RuntimeError("not permitted")
        return run(*given)

    monkeypatch.setattr(TorchGraph, "__call__", failing)
    with pytest.raises(EngineError, match=f"{WHERE}: torch failed: not permitted"):
        call()
    assert cuda.log[-1] == "end"
    call()
    assert len(runs) == 4, "the next call begins anew"


def test_an_array_of_the_device_is_taken_as_it_is(doubler, monkeypatch):
    class OnDevice:
        def __init__(self, tensor, away=0):
            self.tensor = tensor
            self.__cuda_array_interface__ = {"version": 3, "data": (tensor.data_ptr() + away, False)}

    monkeypatch.setattr(torch, "as_tensor", lambda array, device: array.tensor)
    x, y = torch.ones(1, 2), torch.zeros(1, 2)
    doubler.bind({"x": OnDevice(x)}, {"y": OnDevice(y)})()
    assert y.tolist() == [[2, 2]]
    for other in (x.double(), x.int()):
        with pytest.raises(EngineError, match=r"'x' is a torch\.\w+; it takes a float32"):
            doubler.bind({"x": OnDevice(other)}, {})
    with pytest.raises(EngineError, match="'y' does not lie on cpu"):
        doubler.bind({"x": OnDevice(x)}, {"y": OnDevice(y, away=64)})
