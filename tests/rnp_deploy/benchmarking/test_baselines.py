"""The user's own models: what they give, and which are refused."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from every_backend import Backend
from fake_cuda import use_fake_cuda
from fake_tensorrt import fake_tensorrt
from rnp_deploy import Controller
from rnp_deploy.benchmarking.baselines import baseline_rival
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.backends import open_backend
from rnp_deploy.engines.cuda_memory import CudaMemory
from rnp_deploy.engines.single_file import single_file_from_bundle
from rnp_deploy.engines.static_graph import static_graph
from rnp_deploy.errors import EngineError, InputError, MissingRuntimeError
from tensorrt_cases import use_tensorrt

SHAPE = ("N", 3, 16, 16)


def pooled(shape=SHAPE, kind=TensorProto.FLOAT, *, inputs=("x",), producer="test", outputs=("mean", "twice")):
    """Means of all channels, times a weight; then twice that."""
    infos = [helper.make_tensor_value_info(name, kind, shape) for name in inputs]
    weight = numpy_helper.from_array(np.arange(1, 4, dtype=helper.tensor_dtype_to_np_dtype(kind)), "weight")
    nodes = [
        helper.make_node("ReduceMean", [inputs[0] if inputs else "weight"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["m", "weight"], [outputs[0]]),
        helper.make_node("Add", [outputs[0], outputs[0]], [outputs[1]]),
    ]
    made = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", infos, made, [weight])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name=producer)


def means(images):
    return images.mean(axis=(2, 3)) * np.arange(1, 4)


@pytest.fixture
def case(exported):
    return exported("chain")


@pytest.fixture
def images(case):
    return case.images(3).numpy()


@pytest.fixture
def on_cpu(case):
    return open_backend(case.path, "onnxruntime", "cpu", 1, "")


def written(folder, model, name="own.onnx"):
    path = folder / name
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


@pytest.mark.parametrize("backend", ["onnxruntime cpu", "torch cpu", "onnxruntime cuda"])
def test_an_onnx_model_gives_its_first_output_where_the_controller_is(
    backend, case, images, tmp_path, monkeypatch
):
    name, device = backend.split()
    fake = Backend(name, device, stand_in=True).stand_in_for_cuda(monkeypatch) if device == "cuda" else None
    opened = open_backend(case.path, name, device, 1, "")
    rival = baseline_rival(written(tmp_path, pooled()), opened, batch=2, threads=1)
    assert (rival.name, rival.kind, rival.options, rival.macs_share) == ("own.onnx", "baseline", None, None)
    for part in (images[:2], images[2:], images[1:3]):
        waits = fake.waits if fake else 0
        np.testing.assert_allclose(rival.contender(0, part), means(part), rtol=1e-5, atol=1e-6)
        assert fake is None or fake.waits > waits


@pytest.mark.parametrize("shape", [(3, 3, 16, 16), (None, None, "H", "W"), None], ids=str)
def test_sizes_may_be_fixed_free_or_not_said(shape, images, on_cpu, tmp_path):
    rival = baseline_rival(written(tmp_path, pooled(shape)), on_cpu, batch=3, threads=1)
    np.testing.assert_allclose(rival.contender(0, images), means(images), rtol=1e-5, atol=1e-6)


def test_weights_may_lie_beside_it_and_be_listed_as_inputs(images, on_cpu, tmp_path):
    model = pooled()
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [3]))
    onnx.save_model(
        model, tmp_path / "own.onnx", save_as_external_data=True, location="own.data", size_threshold=0
    )
    rival = baseline_rival(str(tmp_path / "own.onnx"), on_cpu, batch=3, threads=1)
    np.testing.assert_allclose(rival.contender(0, images), means(images), rtol=1e-5, atol=1e-6)
    (tmp_path / "own.data").unlink()
    with pytest.raises(EngineError, match=r"own\.onnx.* cannot load it"):
        baseline_rival(tmp_path / "own.onnx", on_cpu, batch=3, threads=1)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("own.onnx", None, "does not exist"),
        ("own.onnx", "folder", "is not a file"),
        ("own.pt", b"", r"ends in '\.pt'; a baseline is an \.onnx file"),
        ("own", b"", "ends in 'nothing'"),
        ("own.onnx", b"", "is not an ONNX model: it has no outputs"),
        ("own.onnx", b"\xff\xff not a model", "is not an ONNX model"),
        ("own.onnx", pooled().SerializeToString()[:-20], "is not an ONNX model"),
        ("own.onnx", pooled((2, 3, 16, 16)), r"batches of 2, not of 1; .* axis that is free"),
        ("own.onnx", pooled(("N", 3, 16, 17)), r"'x' is \['N', 3, 16, 17\]; images are \['N', 3, 16, 16\]"),
        ("own.onnx", pooled(("N", 3, 16)), r"\['N', 3, 16\]"),
        ("own.onnx", pooled(kind=TensorProto.DOUBLE), "'x' is double; images are float32"),
        ("own.onnx", pooled(kind=TensorProto.FLOAT16), "is float16"),
        ("own.onnx", pooled(inputs=("x", "y")), r"2 inputs, \['x', 'y'\]; a baseline takes images alone"),
        ("own.onnx", pooled(inputs=()), "0 inputs"),
    ],
    ids=[
        "missing", "a folder", "suffix", "no suffix", "empty", "other bytes", "truncated", "fixed batch", "width",
        "rank", "float64", "float16", "two inputs", "no input",
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name, content, words, on_cpu, tmp_path):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        written(tmp_path, content, name)
    with pytest.raises(InputError, match=words) as raised:
        baseline_rival(path, on_cpu, batch=1, threads=1)
    assert str(path) in str(raised.value)


def test_a_name_that_no_file_can_have(on_cpu):
    with pytest.raises(InputError, match=r"xx\.onnx cannot be read: .*too long"):
        baseline_rival("x" * 300 + ".onnx", on_cpu, batch=1, threads=1)


def test_a_file_that_may_not_be_read(on_cpu, tmp_path, monkeypatch):
    path = written(tmp_path, pooled())

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "read_bytes", refused)
    with pytest.raises(InputError, match=r"own\.onnx cannot be read: .*denied"):
        baseline_rival(path, on_cpu, batch=1, threads=1)


def test_a_model_that_the_runtime_refuses(on_cpu, tmp_path):
    model = pooled()
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(EngineError, match=r"own\.onnx: ONNX Runtime .* cannot load it"):
        baseline_rival(written(tmp_path, model), on_cpu, batch=1, threads=1)


def test_an_output_of_a_type_that_cannot_be_fetched(case, images, tmp_path, monkeypatch):
    Backend("onnxruntime", "cuda", stand_in=True).stand_in_for_cuda(monkeypatch)
    opened = open_backend(case.path, "onnxruntime", "cuda", 1, "")
    model = pooled()
    model.graph.node[2].op_type = "Less"
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.BOOL
    rival = baseline_rival(written(tmp_path, model), opened, batch=3, threads=1)
    with pytest.raises(EngineError, match=r"own\.onnx: its output 'twice' is tensor\(bool\)"):
        rival.contender(0, images)


def test_the_threads_are_the_controllers(on_cpu, tmp_path):
    with pytest.raises(InputError, match="threads is 0"):
        baseline_rival(written(tmp_path, pooled()), on_cpu, batch=1, threads=0)


def test_a_single_file_model_decides_at_the_runs_penalty(case, images, on_cpu, tmp_path):
    path = written(tmp_path, single_file_from_bundle(open_bundle(case.path)))
    with Controller.load(case.path, "onnxruntime", "cpu", 1) as controller:
        seen = set()
        for penalty in (None, -100.0, 100.0):
            rival = baseline_rival(path, on_cpu, batch=1, threads=1, penalty=penalty)
            assert (rival.name, rival.kind) == ("own.onnx", "single-file")
            for i in range(len(images)):
                expected = controller.run(images[i : i + 1], penalty=penalty)
                np.testing.assert_allclose(
                    rival.contender(i, images[i : i + 1]), expected.outputs, rtol=1e-4, atol=1e-5
                )
                seen.add(expected.options.tobytes())
    assert len(seen) > 1


def test_single_file_models_that_do_not_fit_the_run(case, on_cpu, tmp_path, monkeypatch):
    path = written(tmp_path, single_file_from_bundle(open_bundle(case.path)))
    Backend("onnxruntime", "cuda", stand_in=True).stand_in_for_cuda(monkeypatch)
    on_cuda = open_backend(case.path, "onnxruntime", "cuda", 1, "")
    for opened, batch, words in (
        (on_cpu, 2, "takes one image a run; use a batch of 1, not 2"),
        (on_cuda, 1, "runs on the CPU alone"),
    ):
        with pytest.raises(InputError, match=words):
            baseline_rival(path, opened, batch=batch, threads=1)


def test_of_our_own_graphs_only_single_files_decide(case, images, on_cpu, tmp_path):
    model = pooled(producer="rnp-deploy")
    assert baseline_rival(written(tmp_path, model), on_cpu, batch=3, threads=1).kind == "baseline"
    theirs = pooled((1, 3, 16, 16), outputs=("options", "macs"))
    assert baseline_rival(written(tmp_path, theirs), on_cpu, batch=1, threads=1).kind == "baseline"


class TestPlans:
    """On stand-ins for the driver and TensorRT, whose plans are ONNX graphs."""

    @pytest.fixture
    def fake(self, monkeypatch):
        fake = use_fake_cuda(monkeypatch)
        use_tensorrt(monkeypatch, fake_tensorrt(fake).module)
        return fake

    @pytest.fixture
    def plan(self, case):
        bundle = open_bundle(case.path)
        model = onnx.ModelProto.FromString(static_graph(bundle, (1, 4, 2)))
        onnx.external_data_helper.load_external_data_for_model(model, str(case.path))
        return model

    @pytest.fixture
    def on_gpu(self, fake, on_cpu):
        return replace(on_cpu, memory=CudaMemory(), device="cuda")

    @pytest.mark.parametrize("suffix", [".plan", ".ENGINE"])
    def test_they_run_in_the_controllers_memory(self, suffix, plan, on_gpu, case, images, tmp_path):
        rival = baseline_rival(written(tmp_path, plan, f"own{suffix}"), on_gpu, batch=2, threads=1)
        assert (rival.name, rival.kind) == (f"own{suffix}", "baseline")
        with Controller.load(case.path, "onnxruntime", "cpu", 1) as controller:
            expected = controller.run(images, options=np.tile((1, 4, 2), (3, 1))).outputs
        for rows in (slice(2), slice(2, 3), slice(1, 3)):
            got = rival.contender(0, images[rows])
            np.testing.assert_allclose(got, expected[rows], rtol=1e-4, atol=1e-5)

    def test_beside_a_controller_on_the_cpu_they_are_refused(self, on_cpu, tmp_path):
        with pytest.raises(
            InputError, match=r"own\.plan is a plan of TensorRT, .* time the controller there"
        ):
            baseline_rival(written(tmp_path, b"plan", "own.plan"), on_cpu, batch=1, threads=1)

    def test_where_there_is_no_tensorrt_that_is_said(self, on_gpu, tmp_path, monkeypatch):
        for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingRuntimeError, match="no TensorRT can be used here"):
            baseline_rival(written(tmp_path, b"plan", "own.plan"), on_gpu, batch=1, threads=1)

    @pytest.mark.parametrize(
        ("content", "error", "words"),
        [
            (b"not a plan", EngineError, r"own\.plan: .* cannot load it: .*; a plan holds for the GPU"),
            (pooled(("N", 3, 8, 8)), InputError, r"\['N', 3, 8, 8\]; images are \['N', 3, 16, 16\]"),
            (pooled((2, 3, 16, 16)), InputError, "batches of 2, not of 1"),
            (pooled(kind=TensorProto.FLOAT16), InputError, "'x' is float16; images are float32"),
            (pooled(inputs=("x", "y")), InputError, "2 inputs"),
        ],
        ids=["other bytes", "width", "fixed batch", "float16", "two inputs"],
    )
    def test_plans_that_do_not_fit_are_refused(self, content, error, words, on_gpu, tmp_path):
        with pytest.raises(error, match=words):
            baseline_rival(written(tmp_path, content, "own.plan"), on_gpu, batch=1, threads=1)
