"""The agent step behind a branch decides as the exported one, and as the torch agent."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from bundles import bundle_copy, edit_manifest
from onnx_graphs import GraphWriter, run_plain
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.agent_fusion import add_agent_step, add_prologue, read_agent_step
from rnp_deploy.engines.blocked_layout import marked_graph, with_blocked_edges
from rnp_deploy.engines.ort_build import build_engine_set
from rnp_deploy.errors import EngineError
from rnp_deploy.exporters.stage_graph import agent_step_piece, onnx_graphs
from rnp_deploy.network.agent import Agent
from rnp_deploy.plan import PENALTY, option_name, state_name

SIZE = 6
FEATURES = [5, 8, 5, 8]
OPTIONS = [4, 2, 4, 3]
#: Decision → the tensor its encoder reads: the first and the third read the same.
READS = ["f0", "f1", "f0", "f3"]
KINDS = {"conditioned": {"penalty_range": (-0.5, 2.0)}, "fixed": {"penalty_range": None, "penalty": 0.2}}


@pytest.fixture(scope="module", params=KINDS)
def agent(request):
    """A torch agent with random weights, and its steps as the exporter writes them."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch_agent = Agent(FEATURES, OPTIONS, SIZE, **KINDS[request.param])
        torch_agent.decoder.reset_parameters()
        with torch.no_grad():
            for parameter in torch_agent.parameters():
                parameter.mul_(2.0)
    pieces = [agent_step_piece(torch_agent.step(t), c, SIZE, f"step {t}") for t, c in enumerate(FEATURES)]
    return torch_agent, [ir.to_proto(model) for model in onnx_graphs(pieces)]


def steps_of(models):
    arrays = [{t.name: numpy_helper.to_array(t) for t in model.graph.initializer} for model in models]
    return {t: read_agent_step(models[t], arrays[t], k) for t, k in enumerate(OPTIONS)}


def fused(models, writer, inputs, outputs):
    """One graph: what was written, what depends on the penalty, and every step."""
    model, steps = writer.model(inputs, outputs), steps_of(models)
    add_prologue(model.graph, steps)
    for t, step in steps.items():
        add_agent_step(model.graph, step, t, READS[t])
    return model


def assert_decides_alike(got, torch_agent, models, features, penalty):
    state = np.zeros((len(penalty), SIZE), np.float32)
    for t, model in enumerate(models):
        exported = run_plain(model, {"features": features[t], "state": state, "penalty": penalty})
        with torch.no_grad():
            expected = torch_agent(t, *map(torch.from_numpy, (features[t], state, penalty)))
        state = expected.state.numpy()
        np.testing.assert_allclose(got[state_name(t + 1)], exported["next_state"], atol=1e-6)
        np.testing.assert_allclose(got[state_name(t + 1)], state, atol=1e-6)
        np.testing.assert_array_equal(got[option_name(t)], exported["option"])
        np.testing.assert_array_equal(got[option_name(t)], expected.option.numpy())


def drawn(seed, batch, spread):
    random = np.random.default_rng(seed)
    by_name = {"f0": 5, "f1": 8, "f3": 8}
    arrays = {n: (2 * random.standard_normal((batch, c))).astype(np.float32) for n, c in by_name.items()}
    penalty = (spread * random.standard_normal(batch)).astype(np.float32)
    return arrays, penalty


def test_fused_steps_decide_as_the_exported_ones(agent):
    torch_agent, models = agent
    model = fused(models, GraphWriter(), {"f0": [5], "f1": [8], "f3": [8]}, {})
    seen = [set() for _ in OPTIONS]

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([0.0, 0.02, 0.3, 5.0]))
    def check(seed, batch, spread):
        arrays, penalty = drawn(seed, batch, spread)
        zeros = np.zeros((batch, SIZE), np.float32)
        got = run_plain(model, {**arrays, PENALTY: penalty, state_name(0): zeros})
        assert_decides_alike(got, torch_agent, models, [arrays[name] for name in READS], penalty)
        for t, options in enumerate(seen):
            options.update(got[option_name(t)].tolist())

    check()
    assert all(options >= {1, k} for options, k in zip(seen, OPTIONS, strict=True))


def test_a_state_that_is_given_is_taken_further(agent):
    """As in the middle of a run, where state and features come from stages before."""
    torch_agent, models = agent
    steps, t = steps_of(models), 2
    model = GraphWriter().model({}, {})
    add_prologue(model.graph, steps)
    add_agent_step(model.graph, steps[t], t, "f0")
    arrays, penalty = drawn(1, 4, 0.2)
    state = np.random.default_rng(2).uniform(-1, 1, (4, SIZE)).astype(np.float32)
    got = run_plain(model, {"f0": arrays["f0"], PENALTY: penalty, state_name(t): state})
    with torch.no_grad():
        expected = torch_agent(t, *map(torch.from_numpy, (arrays["f0"], state, penalty)))
    np.testing.assert_allclose(got[state_name(t + 1)], expected.state.numpy(), atol=1e-6)
    np.testing.assert_array_equal(got[option_name(t)], expected.option.numpy())


@pytest.mark.parametrize("kept", [True, False], ids=["features an output", "features dropped"])
def test_zeros_padded_to_the_features_are_not_read(agent, kept, tmp_path):
    torch_agent, models = agent
    writer = GraphWriter()
    writer.weights = {"pads": np.array([0, 2]), "zero": np.float32(0), "axes": np.array([1])}
    writer.add("Relu", "narrow", "relu")
    writer.add("Pad", "relu pads zero axes", "f0", mode="constant")
    model = fused(models, writer, {"narrow": [3], "f1": [8], "f3": [8]}, {"f0": [5]})
    encoders = [node for node in model.graph.node if node.input[0] == "relu" and node.op_type == "Gemm"]
    assert len(encoders) == READS.count("f0")
    if not kept:
        model.graph.output.remove(next(info for info in model.graph.output if info.name == "f0"))
        model = with_blocked_edges(marked_graph(model, [], tmp_path, "branch"), set(), 1)
        assert all(node.op_type != "Pad" or "agent" in node.output[0] for node in model.graph.node)
    arrays, penalty = drawn(5, 6, 0.3)
    narrow = arrays.pop("f0")[:, :3]
    given_arrays = {"narrow": narrow, PENALTY: penalty, state_name(0): np.zeros((6, SIZE), np.float32)}
    got = run_plain(model, arrays | given_arrays)
    arrays["f0"] = np.pad(np.maximum(narrow, 0), ((0, 0), (0, 2)))
    assert_decides_alike(got, torch_agent, models, [arrays[name] for name in READS], penalty)


def test_padding_in_front_is_read_as_it_is(agent):
    """Only channels behind the others can be left out of the encoder."""
    torch_agent, models = agent
    writer = GraphWriter()
    writer.weights = {"pads": np.array([2, 0]), "zero": np.float32(0), "axes": np.array([1])}
    writer.add("Pad", "narrow pads zero axes", "f0", mode="constant")
    model = fused(models, writer, {"narrow": [3], "f1": [8], "f3": [8]}, {"f0": [5]})
    arrays, penalty = drawn(6, 6, 0.3)
    narrow = arrays.pop("f0")[:, :3]
    zeros = np.zeros((6, SIZE), np.float32)
    got = run_plain(model, {**arrays, "narrow": narrow, PENALTY: penalty, state_name(0): zeros})
    arrays["f0"] = np.pad(narrow, ((0, 0), (2, 0)))
    assert_decides_alike(got, torch_agent, models, [arrays[name] for name in READS], penalty)


def test_what_depends_on_the_penalty_alone_is_made_once(agent):
    torch_agent, models = agent
    model = fused(models, GraphWriter(), {"f0": [5], "f1": [8], "f3": [8]}, {})
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Log") == (torch_agent.scale is not None)
    assert kinds.count("Pad") == len(set(OPTIONS))
    assert kinds.count("GRU") == len(OPTIONS)


def relu_before_the_encoder(graph):
    encoder = next(node for node in graph.node if "encoder.weight" in node.input)
    graph.node.insert(0, helper.make_node("Relu", [encoder.input[0]], ["seen"]))
    encoder.input[0] = "seen"


def features_last(graph):
    joined = next(node for node in graph.node if node.op_type == "Concat")
    joined.input[:] = reversed(joined.input)


def price_added(graph):
    next(node for node in graph.node if node.output[0] == "q_values").op_type = "Add"


def tanh_behind_the_decoder(graph):
    at, price = next((i, n) for i, n in enumerate(graph.node) if n.output[0] == "q_values")
    graph.node.insert(at, helper.make_node("Tanh", [price.input[0]], ["bounded"]))
    price.input[0] = "bounded"


def parameter_renamed(graph):
    for tensor in graph.initializer:
        tensor.name = tensor.name.replace("decoder.bias", "worth")
    for node in graph.node:
        node.input[:] = [name.replace("decoder.bias", "worth") for name in node.input]


OTHER_BUILDS = [
    relu_before_the_encoder,
    features_last,
    price_added,
    tanh_behind_the_decoder,
    parameter_renamed,
]


@pytest.mark.parametrize("change", OTHER_BUILDS)
def test_an_agent_of_another_build_is_refused(change, exported, tmp_path):
    folder, file = bundle_copy(exported("in place").path, tmp_path / "bundle"), "agent/step_00.onnx"
    model = onnx.load(folder / file, load_external_data=False)
    change(model.graph)
    data = model.SerializeToString()
    (folder / file).write_bytes(data)

    def sign(raw):
        listed = next(entry for entry in raw["files"] if entry["path"] == file)
        listed.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    edit_manifest(folder, sign)
    with pytest.raises(
        EngineError, match=r"agent/step_00\.onnx: the agent is built in a way .* export .* again"
    ):
        build_engine_set(open_bundle(folder), tmp_path / "engines")
    assert not (tmp_path / "engines").exists()
