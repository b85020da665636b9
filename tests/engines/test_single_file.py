"""A bundle as one model: the controller's numbers, every weight once, and as fast as the runtime lets it be."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bundles import bundle_copy
from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines import ort, single_file
from rnp_deploy.engines.single_file import single_file_from_bundle
from rnp_deploy.errors import ExportError, IntegrityError, MissingRuntimeError

NETWORKS = ["chain with norm", "basic residual", "bottleneck residual", "separable", "in place"]
each_network = pytest.mark.parametrize("name", NETWORKS)


def session(model, folder=None, **settings):
    options = ort.session_options(Path(folder or "."), ort.threads_in_use())
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(opened, **feeds):
    names = [output.name for output in opened.get_outputs()]
    return dict(zip(names, opened.run(names, feeds), strict=True))


def joined(case, **arguments):
    return single_file_from_bundle(open_bundle(case.path), **arguments).SerializeToString()


@each_network
def test_it_decides_and_computes_what_the_controller_does(name, exported):
    case = exported(name)
    images = case.images(6).numpy()
    opened, seen = session(joined(case)), set()
    with Controller.load(case.path, threads=1) as controller:
        for penalty in (None, -0.02, 0.05, 0.3, 1.0):
            expected = controller.run(images, penalty=penalty)
            for i in range(len(images)):
                given = {} if penalty is None else {"penalty": np.array([penalty], np.float32)}
                got = run(opened, images=images[i : i + 1], **given)
                assert got["options"].tolist() == [expected.options[i].tolist()]
                assert got["macs"].tolist() == [expected.macs[i]]
                largest = np.abs(expected.outputs).max()
                assert np.abs(got["outputs"] - expected.outputs[i]).max() <= 1e-5 * largest
                seen.add(tuple(expected.options[i]))
    assert len(seen) > 1, "the agent never changed its mind"


@each_network
def test_with_options_for_an_input_it_takes_every_branch(name, exported):
    case = exported(name)
    opened = session(joined(case, agent=False))
    assert [value.name for value in opened.get_inputs()] == ["images", "options"]
    assert [value.name for value in opened.get_outputs()] == ["outputs", "macs"]
    images, options = case.images(64).numpy(), case.options(64).numpy()
    with Controller.load(case.path, threads=1) as controller:
        expected = controller.run(images, options=options)
    for i in range(len(images)):
        got = run(opened, images=images[i : i + 1], options=options[i : i + 1])
        assert got["macs"].tolist() == [expected.macs[i]]
        error = np.abs(got["outputs"] - expected.outputs[i]).max()
        assert error <= 1e-5 * np.abs(expected.outputs).max(), options[i]


def test_inputs_and_outputs(exported):
    opened = session(joined(exported("chain")))
    values = [
        (value.name, value.type, value.shape) for value in (*opened.get_inputs(), *opened.get_outputs())
    ]
    assert values == [
        ("images", "tensor(float)", [1, 3, 16, 16]),
        ("outputs", "tensor(float)", [1, 10]),
        ("options", "tensor(int64)", [1, 3]),
        ("macs", "tensor(int64)", [1]),
    ]
    (penalty,) = opened.get_overridable_initializers()
    assert (penalty.name, penalty.type, penalty.shape) == ("penalty", "tensor(float)", [1])


def graphs(graph):
    """A graph and all that lie in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g)


@each_network
def test_every_weight_lies_once_and_in_the_outermost_graph(name, exported):
    case = exported(name)
    bundle = open_bundle(case.path)
    model = single_file_from_bundle(bundle)
    onnx.checker.check_model(model, full_check=True)
    weights = [t.raw_data for t in model.graph.initializer if t.name.startswith("weight")]
    stored = next(file.bytes for file in bundle.manifest.files if file.path == "weights.bin")
    assert len(weights) == len(set(weights))
    assert stored * 0.95 - 4096 <= sum(map(len, weights)) <= stored
    graph_bytes = sum(len(data) for data in bundle.graphs.values())
    assert model.ByteSize() <= stored + 1.2 * graph_bytes + 4096
    for inner in list(graphs(model.graph))[1:]:
        assert all(
            tensor.data_type == onnx.TensorProto.INT64 or not tensor.dims for tensor in inner.initializer
        )
    assert not any(t.external_data for inner in graphs(model.graph) for t in inner.initializer)


def operators(graph, counts):
    for node in graph.node:
        if node.op_type != "If":
            counts[node.domain, node.op_type] += 1
    return counts


def optimised(model, tmp_path, folder=None):
    file = tmp_path / "optimised.onnx"
    session(model, folder, optimized_model_filepath=str(file))
    return onnx.load(file, load_external_data=False).graph


@each_network
def test_the_runtime_makes_of_a_branch_what_it_makes_of_it_alone(name, exported, tmp_path):
    """No slice is left, convolutions are in the blocked layout, and what can be fused is."""
    case = exported(name)
    bundle = open_bundle(case.path)
    inside, alone = Counter(), Counter()
    for graph in list(graphs(optimised(joined(case), tmp_path)))[1:]:
        operators(graph, inside)
    for stage in bundle.manifest.stages[1:]:
        for branch in stage.branches:
            operators(optimised(bundle.graph(branch.file), tmp_path, bundle.path), alone)
    assert inside == alone
    assert not {kind for _, kind in inside} & {"Slice", "Identity"}


def test_choices_are_balanced_trees(exported):
    def depth(graph):
        inner = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
        return 1 + max(map(depth, inner)) if inner else 0

    model = single_file_from_bundle(open_bundle(exported("chain").path))
    choices = [node for node in model.graph.node if node.op_type == "If"]
    assert [depth(onnx.helper.make_graph([node], "one", [], [])) for node in choices] == [2, 4, 4]


def test_the_runtime_warns_of_nothing_but_the_penalty(exported, capfd):
    """Which it says of every input that has a default."""
    case = exported("bottleneck residual")
    opened = session(joined(case), log_severity_level=2)
    run(opened, images=case.images(1).numpy())
    opened = session(joined(case, agent=False), log_severity_level=2)
    run(opened, images=case.images(1).numpy(), options=case.options(1).numpy())
    warnings = capfd.readouterr().err.splitlines()
    assert [line for line in warnings if "Initializer penalty appears in graph inputs" not in line] == []


def test_without_the_agent_nothing_of_it_is_left(exported):
    model = single_file_from_bundle(open_bundle(exported("chain").path), agent=False)
    names = {
        name for graph in graphs(model.graph) for node in graph.node for name in (*node.input, *node.output)
    }
    assert not [name for name in names if "agent" in name or "pooled" in name or "encoder" in name]


def test_the_bundle_is_left_as_it_was(exported):
    bundle = open_bundle(exported("separable").path)
    before = dict(bundle.graphs)
    assert single_file_from_bundle(bundle) == single_file_from_bundle(bundle)
    assert bundle.graphs == before


def test_more_than_a_protobuf_file_can_hold_is_refused(exported, monkeypatch):
    monkeypatch.setattr(single_file, "MOST_BYTES", 100_000)
    with pytest.raises(ExportError, match=r"do not fit into one ONNX file.*export a bundle"):
        single_file_from_bundle(open_bundle(exported("chain").path))


def test_weights_replaced_after_the_bundle_was_opened_are_refused(exported, tmp_path):
    bundle = open_bundle(bundle_copy(exported("separable").path, tmp_path / "bundle"))
    file = bundle.path / "weights.bin"
    file.write_bytes(bytes(file.stat().st_size + 1))
    with pytest.raises(IntegrityError, match=r"weights\.bin was replaced"):
        single_file_from_bundle(bundle)


def test_without_onnx_the_error_names_the_extra(exported, monkeypatch):
    bundle = open_bundle(exported("separable").path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingRuntimeError, match=r"rnp-deploy\[bench\]"):
        single_file_from_bundle(bundle)
