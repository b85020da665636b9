"""Which backend runs what, on which device; what a machine lacks is said before anything is opened."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from fake_cuda import use_fake_cuda
from fake_ort_cuda import CudaSessions
from rnp_deploy import Controller
from rnp_deploy.array_memory import HOST
from rnp_deploy.engines import backends, cuda_driver
from rnp_deploy.engines.backends import open_backend
from rnp_deploy.engines.cuda_memory import CudaMemory
from rnp_deploy.errors import DeviceError, EngineError, MissingRuntimeError
from rnp_deploy.exporters import export_bundle


@pytest.fixture
def no_driver(monkeypatch):
    """A machine without a GPU, whatever this one has."""
    cuda_driver._library.cache_clear()
    cuda_driver._primary_context.cache_clear()
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libcuda-that-is-not-there.so.1")
    yield
    cuda_driver._library.cache_clear()


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "torch"])
def test_each_backend_runs_a_bundle_on_the_cpu(backend, exported):
    case = exported("bottleneck residual")
    images, options = case.images(5), case.options(5)
    with Controller.load(case.path, backend, "cpu", 1) as controller:
        got = controller.run(images.numpy(), options=options.numpy())
        decided = controller.run(images.numpy()).options
        assert (controller.backend, controller.device) == (backend.replace("auto", "onnxruntime"), "cpu")
    with torch.no_grad():
        expected = case.network.run(images, options).numpy()
        assert decided.tolist() == case.network(images)[1].tolist()
    assert np.abs(got.outputs - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("torch", "auto"), "is an engine set of onnxruntime, which backend='torch' does not run"),
        (("tensorrt", "auto"), "is an engine set of onnxruntime"),
        (("auto", "cuda"), "is an engine set for cpu; load the bundle for device='cuda'"),
    ],
)
def test_an_engine_set_is_run_by_what_it_was_built_for(arguments, words, engine_set):
    with pytest.raises(EngineError, match=words):
        open_backend(engine_set("chain"), *arguments, None, None)
    assert open_backend(engine_set("chain"), "onnxruntime", "cpu", 1, None).source.plan is not None


def test_without_a_gpu_auto_is_the_cpu_and_cuda_says_why(exported, no_driver, monkeypatch):
    path = exported("chain").path
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for backend in ("auto", "torch"):
        assert open_backend(path, backend, "auto", None, None).memory is HOST
    with pytest.raises(DeviceError, match="no NVIDIA driver here"):
        open_backend(path, "onnxruntime", "cuda", None, None)
    with pytest.raises(DeviceError, match="device 'cuda' cannot be used: torch"):
        open_backend(path, "torch", "cuda", None, None)


def test_a_gpu_that_onnxruntime_is_not_built_for_is_left_alone(exported, monkeypatch):
    path = exported("chain").path
    use_fake_cuda(monkeypatch)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert open_backend(path, "auto", "auto", None, None).memory is HOST
    with pytest.raises(MissingRuntimeError, match="built without CUDA"):
        open_backend(path, "auto", "cuda", None, None)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_onnxruntime_takes_the_gpu_it_is_built_for(device, exported, monkeypatch):
    case = exported("chain")
    sessions = CudaSessions(use_fake_cuda(monkeypatch))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", sessions)
    images = case.images(3)
    with Controller.load(case.path, device=device, threads=1) as controller, torch.no_grad():
        assert controller.run(images.numpy()).options.tolist() == case.network(images)[1].tolist()
    assert sessions.made


def test_a_bundle_in_bf16_is_run_by_torch(exported, tmp_path, monkeypatch):
    case = exported("chain")
    export_bundle(case.network, tmp_path / "bf16", precision="bf16")
    images, options = case.images(4), case.options(4)
    with Controller.load(tmp_path / "bf16", device="cpu") as controller, torch.no_grad():
        got = controller.run(images.numpy(), options=options.numpy()).outputs
        expected = case.network.run(images, options).numpy()
    assert np.abs(got - expected).max() <= 0.1 * np.abs(expected).max()
    with pytest.raises(EngineError, match=r"is in bf16, .* use backend='torch'"):
        Controller.load(tmp_path / "bf16", backend="onnxruntime", device="cpu")


def test_the_cache_holds_engine_sets_of_the_cpu_alone(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "_onnxruntime_has_a_gpu", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    path = exported("chain").path
    use_fake_cuda(monkeypatch)
    opened = open_backend(path, "onnxruntime", "auto", None, tmp_path)
    assert isinstance(opened.memory, CudaMemory)
    assert opened.source.plan is None
    assert not list(tmp_path.iterdir())
