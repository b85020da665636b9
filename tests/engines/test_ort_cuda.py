"""ONNX Runtime on CUDA: device arrays, no silent CPU; on a stand-in for the driver and the provider."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

from fake_cuda import use_fake_cuda
from fake_ort_cuda import CudaSessions
from rnp_deploy import Controller
from rnp_deploy.bundle.reading import open_bundle
from rnp_deploy.engines import ort_cuda
from rnp_deploy.engines.cuda_memory import CudaMemory
from rnp_deploy.errors import EngineError, MissingRuntimeError


@pytest.fixture
def cases(exported):
    """Exported before anything is put in a stand-in's place."""
    return {name: exported(name) for name in ("chain", "bottleneck residual")}


@pytest.fixture
def cuda(cases, monkeypatch):
    return use_fake_cuda(monkeypatch)


@pytest.fixture
def with_cuda(cases, monkeypatch):
    """The installed ONNX Runtime says that it is built for CUDA."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])


@pytest.fixture
def sessions(cuda, with_cuda, monkeypatch):
    sessions = CudaSessions(cuda)
    monkeypatch.setattr(onnxruntime, "InferenceSession", sessions)
    return sessions


@pytest.fixture
def memory(sessions):
    return CudaMemory()


@pytest.mark.parametrize("name", ["chain", "bottleneck residual"])
def test_it_agrees_with_the_masked_reference(name, cases, memory, sessions):
    case = cases[name]
    bundle = open_bundle(case.path)
    with Controller(bundle.manifest, ort_cuda.opener(bundle, memory), memory=memory) as controller:
        for batch in (1, 5, 1, 5):
            images, options = case.images(batch, batch), case.options(batch, batch)
            got = controller.run(images.numpy(), options=options.numpy()).outputs
            with torch.no_grad():
                expected = case.network.run(images, options).numpy()
            assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
            decided = controller.run(images.numpy())
            with torch.no_grad():
                assert decided.options.tolist() == case.network(images)[1].tolist()
    assert {made["user_compute_stream"] for made in sessions.made} == {"77"}
    assert {made["use_tf32"] for made in sessions.made} == {"0"}


def test_a_provider_that_does_not_start_is_an_error(cases, memory, sessions):
    sessions.starts = False
    open_engine = ort_cuda.opener(open_bundle(cases["chain"].path), memory)
    with pytest.raises(EngineError, match=r"full.onnx: .* would run it on the CPU.*device='cpu'"):
        open_engine("stages/00/full.onnx")


def test_a_real_build_without_the_provider_is_an_error(cases, cuda, with_cuda):
    """The ONNX Runtime of this environment has no CUDA provider, whatever it is made to say."""
    if "CUDAExecutionProvider" in onnxruntime.capi._pybind_state.get_available_providers():
        pytest.skip("this onnxruntime is built for CUDA")
    open_engine = ort_cuda.opener(open_bundle(cases["chain"].path), CudaMemory())
    with pytest.raises(EngineError, match=r"full.onnx: ONNX Runtime .*(cannot run all of it on the GPU|CPU)"):
        open_engine("stages/00/full.onnx")


@pytest.mark.parametrize(
    ("packages", "words"),
    [
        (["numpy", "onnxruntime"], "pip uninstall onnxruntime, then"),
        (["onnxruntime", "onnxruntime-gpu"], "are both installed and overwrite each other"),
    ],
    ids=["cpu", "both"],
)
def test_a_build_for_the_cpu_is_told_from_two_builds(packages, words, cases, cuda, monkeypatch):
    found = [SimpleNamespace(metadata={"Name": name}) for name in packages]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort_cuda.metadata, "distributions", lambda: found)
    with pytest.raises(MissingRuntimeError, match=words):
        ort_cuda.opener(open_bundle(cases["chain"].path), CudaMemory())


def test_arrays_that_do_not_fit_are_refused(cases, memory):
    engine = ort_cuda.opener(open_bundle(cases["chain"].path), memory)("stages/00/full.onnx")
    with memory.turn():
        array = memory.empty((1, 3, 16, 16), np.dtype(np.float16))
        with pytest.raises(EngineError, match="'images' is float16; it takes float32"):
            engine.run({"images": array})
        with pytest.raises(EngineError, match="has no tensor 'x'"):
            engine.bind({"x": array}, {})
        engine.close()
        with pytest.raises(EngineError, match="after close"):
            engine.run({"images": array})
