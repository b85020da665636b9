"""One path as one graph: the same numbers as the controller, and nothing of the agent."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
import torch

from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.ort import engine_from_onnx
from rnp_deploy.engines.static_graph import static_graph
from rnp_deploy.errors import InputError, MissingRuntimeError

each_network = pytest.mark.parametrize("name", ["chain with norm", "basic residual"])
paths = pytest.mark.parametrize(
    "options", [(1, 1, 1), (4, 4, 4), (1, 4, 2), (3, 1, 4), np.array([2, 3, 1])], ids=str
)


def run(bundle, options, images):
    engine = engine_from_onnx(static_graph(bundle, options), bundle.path, "static", threads=1)
    (output,) = engine.run({"images": images}).values()
    return output


def assert_close(got, expected):
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@each_network
@paths
def test_it_agrees_with_the_controller_at_the_same_options(name, options, exported):
    case = exported(name)
    images = case.images(4).numpy()
    with Controller.load(case.path, threads=1) as controller:
        expected = controller.run(images, options=np.tile(options, (4, 1))).outputs
    assert_close(run(open_bundle(case.path), options, images), expected)


@each_network
def test_with_every_group_it_is_the_dense_network(name, exported):
    case = exported(name)
    images = case.images(2)
    with torch.no_grad():
        expected = case.backbone(images).numpy()
    got = run(open_bundle(case.path), [4] * len(case.network.decisions), images.numpy())
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


@each_network
@paths
def test_what_only_the_agent_reads_is_gone(name, options, exported):
    bundle = open_bundle(exported(name).path)
    graph = onnx.ModelProto.FromString(static_graph(bundle, options)).graph
    made = [output for node in graph.node for output in node.output]
    read = {name for node in graph.node for name in node.input}
    pooled = [step.features for step in bundle.manifest.agent.steps]
    assert not set(pooled) & set(made)
    assert set(made) - read == {"outputs"}, "a node is computed for nothing"
    assert {tensor.name for tensor in graph.initializer} <= read, "a weight is loaded for nothing"
    assert len(made) == len(set(made))
    assert [value.name for value in (*graph.input, *graph.output)] == ["images", "outputs"]


def test_weights_stay_in_the_bundle(exported):
    case = exported("chain with norm")
    bundle = open_bundle(case.path)
    graph = onnx.ModelProto.FromString(static_graph(bundle, [4, 4, 4])).graph
    external = {
        entry.value
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert external == {"weights.bin"}
    assert all(len(tensor.raw_data) < 1000 for tensor in graph.initializer)


def test_the_bundle_is_left_as_it_was(exported):
    bundle = open_bundle(exported("chain with norm").path)
    before = dict(bundle.graphs)
    assert static_graph(bundle, [1, 2, 3]) == static_graph(bundle, [1, 2, 3])
    assert bundle.graphs == before


@pytest.mark.parametrize(
    "options",
    [[], [1, 1], [1, 1, 1, 1], [0, 1, 1], [1, 5, 1], [1, 1, -1], [1.5, 1, 1], ["1", "1", "1"], [None, 1, 1]],
    ids=str,
)
def test_bad_options(exported, options):
    with pytest.raises(InputError, match=r"3 integers from 1 to \[4, 4, 4\]") as caught:
        static_graph(open_bundle(exported("chain with norm").path), options)
    assert str(options) in str(caught.value)


def test_without_onnx_the_error_names_the_extra(exported, monkeypatch):
    bundle = open_bundle(exported("chain with norm").path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingRuntimeError, match=r"rnp-deploy\[bench\]"):
        static_graph(bundle, [1, 1, 1])
