"""Static paths on every backend: the controller's numbers, in its memory."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from every_backend import Backend
from fake_cuda import use_fake_cuda
from fake_tensorrt import fake_tensorrt
from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.engine_set import EngineSet
from rnp_deploy.engines import trt_network
from rnp_deploy.engines.backends import Opened, open_backend
from rnp_deploy.engines.cuda_memory import CudaMemory
from rnp_deploy.engines.sources import Source
from rnp_deploy.engines.static_engines import flavor_of, static_opener, static_plan
from rnp_deploy.engines.static_graph import static_graph
from rnp_deploy.errors import InputError
from tensorrt_cases import use_tensorrt

PATH = (1, 4, 2)


@pytest.fixture
def case(exported):
    return exported("chain")


@pytest.fixture
def expected(case):
    """Of the path, by the controller on the CPU."""
    images = case.images(3).numpy()
    with Controller.load(case.path, "onnxruntime", "cpu", 1) as controller:
        return images, controller.run(images, options=np.tile(PATH, (3, 1))).outputs


def output(opened, engine, images):
    with opened.memory.turn():
        fed = opened.memory.empty(images.shape, images.dtype)
        opened.memory.write(fed, images)
        return [opened.memory.to_host(array) for array in engine.run({"images": fed}).values()]


@pytest.mark.parametrize(
    ("backend", "device"), [("onnxruntime", "cpu"), ("torch", "cpu"), ("onnxruntime", "cuda")]
)
def test_it_agrees_with_the_controller_at_the_same_options(backend, device, case, expected, monkeypatch):
    if device == "cuda":
        Backend(backend, device, stand_in=True).stand_in_for_cuda(monkeypatch)
    opened = open_backend(case.path, backend, device, 1, "")
    open_static = static_opener(open_bundle(case.path), opened, 1, 3)
    images, wanted = expected
    (got,) = output(opened, open_static(PATH), images)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    (dense,) = output(opened, open_static((4, 4, 4)), images)
    assert np.abs(dense - wanted).max() > 1e-2


def test_those_of_an_engine_set_are_the_bundles(case, engine_set, expected):
    opened = open_backend(engine_set("chain"), "auto", "auto", 1, "")
    images, wanted = expected
    (got,) = output(opened, static_opener(open_bundle(case.path), opened, 1, 3)(PATH), images)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def tensorrt_opened(path, memory):
    engines = SimpleNamespace(fingerprint={"flavor": "tensorrt"})
    bundle = open_bundle(path)
    graphs = EngineSet(path, bundle.manifest, engines, {})
    return Opened("tensorrt", "cuda", Source(graphs, bundle.manifest, None), None, memory, 8)


def test_those_of_tensorrt_are_plans_of_its_flavor_in_the_controllers_memory(case, expected, monkeypatch):
    """By the run path itself, on a runtime whose plans are ONNX graphs."""
    fake, batches = use_fake_cuda(monkeypatch), []
    use_tensorrt(monkeypatch, fake_tensorrt(fake).module)

    def plan(library, graph, options, timings):
        batches.append((library.flavor, options.opt_batch, options.max_batch))
        return graph.onnx, None

    monkeypatch.setattr(trt_network, "plan_from_graph", plan)
    opened = tensorrt_opened(case.path, CudaMemory())
    open_static = static_opener(open_bundle(case.path), opened, None, 3)
    images, wanted = expected
    (got,) = output(opened, open_static(PATH), images)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert batches == [("tensorrt", 3, 3)]


def test_the_flavor_is_the_engine_sets(case):
    assert flavor_of(tensorrt_opened(case.path, None)) == "tensorrt"
    assert flavor_of(open_backend(case.path, "onnxruntime", "cpu", 1, "")) == "auto"


def test_a_static_graph_becomes_a_plan_of_tensorrt(case):
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    from rnp_deploy.engines.trt_library import load_tensorrt

    bundle = open_bundle(case.path)
    graph = static_graph(bundle, PATH)
    source = replace(bundle, graphs={"static": graph})
    assert len(static_plan(source, "static", 4, load_tensorrt("rtx"))) > len(graph)


def test_the_threads_are_the_controllers(case):
    with pytest.raises(InputError, match="threads is 0"):
        static_opener(open_bundle(case.path), open_backend(case.path, "onnxruntime", "cpu", 1, ""), 0, 1)


def test_options_that_name_no_path(case):
    opened = open_backend(case.path, "onnxruntime", "cpu", 1, "")
    with pytest.raises(InputError, match="do not name a path"):
        static_opener(open_bundle(case.path), opened, 1, 1)((5, 1, 1))
