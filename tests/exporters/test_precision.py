"""Bundles in another precision than fp32: their types, their verification, and what is refused."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

import networks
from narrow_bundles import made, noise, wrong_slice
from random_networks import PARTS, RandomCnn
from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.engines.ort_build import build_engine_set
from rnp_deploy.errors import EngineError, InputError, VerificationError
from rnp_deploy.exporters import bundle_export, export_bundle
from rnp_deploy.exporters.precision import verifying_opener
from rnp_deploy.network import RuntimePrunedNetwork
from tiny_training import tiny_data
from typed_graphs import mixed_nodes, value_types, whole_graphs

SLOW = pytest.mark.slow
#: Networks of every kind of edge: two-sided options, a trunk, a depthwise follower, padding and gates.
HALF = (
    ("chain", "fp16"), ("depthwise", "fp16"), ("concatenated", "fp16"), ("chain", "bf16"),
    *(
        pytest.param(kind, precision, marks=SLOW)
        for kind in ("depthwise", "basic residual", "separable", "mixed", "channels last")
        for precision in ("fp16", "bf16") if (kind, precision) != ("depthwise", "fp16")
    ),
)  # fmt: skip
HALF_NAMES = {"fp16": "float16", "bf16": "bfloat16"}
REDUCTIONS = {"GlobalAveragePool", "ReduceMean", "Softmax", "LayerNormalization", "InstanceNormalization"}
ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


@pytest.mark.parametrize(("kind", "precision"), HALF)
def test_edges_are_half_and_the_agent_is_not(kind, precision, narrow):
    network, path, manifest = narrow(kind, precision)
    features = {decision.features for decision in network.decisions}
    graphs = whole_graphs(path)
    for stage in manifest.stages:
        for tensor in (*stage.inputs, *stage.outputs):
            kept = tensor.name in {"images", "outputs", *features}
            assert tensor.dtype == ("float32" if kept else HALF_NAMES[precision])
        described = {tensor.name: tensor for tensor in (*stage.inputs, *stage.outputs)}
        for branch in stage.branches:
            graph = graphs[branch.file].graph
            for value in (*graph.input, *graph.output):
                wanted = ELEMENTS[described[value.name].dtype]
                assert value.type.tensor_type.elem_type == wanted, (branch.file, value.name)
    for step in manifest.agent.steps:
        assert ELEMENTS[HALF_NAMES[precision]] not in value_types(graphs[step.file]).values()


@pytest.mark.parametrize(("kind", "precision"), HALF)
def test_half_graphs_are_valid_and_mix_no_types(kind, precision, narrow):
    for file, model in whole_graphs(narrow(kind, precision)[1]).items():
        onnx.checker.check_model(model, full_check=True)
        assert list(mixed_nodes(model)) == [], file
        types = value_types(model)
        for node in model.graph.node:
            if node.op_type in REDUCTIONS:
                assert types[node.input[0]] == TensorProto.FLOAT, (file, node.op_type)
            if node.op_type == "Conv":
                assert types[node.input[0]] == types[node.output[0]] == ELEMENTS[HALF_NAMES[precision]], file
        casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
        assert not set(casts) & set(casts.values()), f"{file}: a cast of a cast"
        assert len(set(casts.values())) == len(casts), f"{file}: a tensor is cast twice"


@pytest.mark.parametrize(("kind", "precision"), HALF)
def test_half_weights_take_half_the_bytes_once(kind, precision, narrow):
    network, path, _ = narrow(kind, precision)
    agent = sum(p.numel() for p in network.agent.parameters())
    backbone = sum(p.numel() for p in network.backbone.parameters())
    size = (path / "weights.bin").stat().st_size
    assert size <= 4 * agent + 2 * backbone + 64 * 2 * len(list(network.parameters()))
    stored: dict[str, set[tuple[str, str]]] = {}
    for file, data in open_bundle(path).graphs.items():
        for tensor in onnx.ModelProto.FromString(data).graph.initializer if file.startswith("stages") else ():
            if tensor.data_location == TensorProto.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                stored.setdefault(tensor.name, set()).add(entries["offset"])
    assert len(stored) >= len(network.decisions)
    assert {name: offsets for name, offsets in stored.items() if len(offsets) > 1} == {}


@pytest.mark.parametrize(("kind", "precision"), HALF)
def test_a_controller_runs_half_precision(kind, precision, narrow):
    network, path, manifest = narrow(kind, precision)
    images = torch.randn(5, *network.input_shape, generator=torch.Generator().manual_seed(7))
    options = network.random_options(5, torch.Generator().manual_seed(7))
    opened = verifying_opener(open_bundle(path), precision)
    with Controller(manifest, opened) as controller, torch.no_grad():
        for batch in (1, 5):
            result = controller.run(images[:batch].numpy(), options=options[:batch].numpy())
            expected = network.run(images[:batch], options[:batch]).numpy()
            assert result.outputs.dtype == np.float32
            error = np.abs(result.outputs - expected).max() / np.abs(expected).max()
            assert 1e-5 < error < (5e-3 if precision == "fp16" else 4e-2)  # less would be fp32
        assert (controller.run(images.numpy()).options == network(images)[1].numpy()).mean() >= 0.9
    assert manifest.verification.max_branch_deviation <= manifest.verification.tolerance < 2e-2


@given(
    st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=3), st.booleans(), st.integers(0, 99),
    st.sampled_from([17, 20]), st.sampled_from(["pairs", "outputs"]),
)  # fmt: skip
@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_random_networks_in_fp16(parts, flatten, seed, opset, branches):
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        backbone = networks.randomised(RandomCnn(parts, 8, flatten))
        network = RuntimePrunedNetwork.from_backbone(
            backbone, torch.zeros(1, 3, 10, 10), 2, min_macs_share=0.0
        )
        path = Path(folder) / "bundle"
        export_bundle(network, path, precision="fp16", opset=opset, branches=branches, verify=1)
        for file, model in whole_graphs(path).items():
            assert model.opset_import[0].version == opset
            assert list(mixed_nodes(model)) == [], file
            onnx.checker.check_model(model, full_check=True)


def wrong_option(stage, tensors, cuts, kept, options, cut=bundle_export.cut_branch):
    """One input channel is of another group: its weights are the first group's."""
    return cut(stage, tensors, cuts, {name: max(width - 1, 1) for name, width in kept.items()}, options)


@pytest.mark.parametrize(
    ("broken", "precision"),
    [(wrong_slice, "fp16"), pytest.param(wrong_option, "fp16", marks=SLOW), (wrong_option, "bf16")],
)
def test_a_wrong_cut_fails_in_half_precision(broken, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_export, "cut_branch", broken)
    with pytest.raises((VerificationError, EngineError), match="stage"):
        export_bundle(made("chain"), tmp_path / "bundle", precision=precision, verify=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"precision": "fp8"}, r"precision='fp8': use one of 'fp32', 'fp16', 'bf16', 'int8'"),
        ({"precision": "int8"}, r"int8 needs images .* --data NAME"),
        ({"precision": "fp16", "data": "other"}, r"images of shape \(1, 16, 16\); the network takes \(3, 16, 16\)"),
        ({"opset": 16}, r"opset=16: fp32 bundles are written in opset 17, 18, 19, 20"),
        ({"opset": 22}, r"opset=22: fp32"),
        ({"opset": 20, "precision": "bf16"}, r"opset=20: bf16 bundles are written in opset 22"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments, words, tmp_path):
    if arguments.get("data") == "other":
        arguments = arguments | {"data": tiny_data()}
    with pytest.raises(InputError, match=words):
        export_bundle(made("chain"), tmp_path / "bundle", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_data_and_bundle_are_of_one_preprocessing(tmp_path):
    network = made("chain")
    data = noise(network)
    other = data.preprocessing.model_copy(update={"mean": (0.5,) * 3})
    with pytest.raises(InputError, match=r"noise is preprocessed as .*0\.0.*the bundle is to say .*0\.5"):
        export_bundle(network, tmp_path / "bundle", precision="int8", data=data, preprocessing=other)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_set_of_it_is_refused(narrow, tmp_path):
    bundle = open_bundle(narrow("chain")[1])
    with pytest.raises(InputError, match=r"is fp16; engine sets .* load the bundle as it is"):
        build_engine_set(bundle, tmp_path / "engines")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_runs_it_as_it_is(narrow, tmp_path, caplog):
    network, path, _ = narrow("chain")
    with Controller.load(path, threads=1, cache_dir=tmp_path) as controller:
        assert controller.run(np.zeros((1, *network.input_shape), np.float32)).outputs.shape == (1, 10)
    assert not caplog.records
    assert not list(tmp_path.iterdir())


def test_bundles_of_before_are_fp32(exported):
    manifest = open_bundle(exported("chain").path).manifest
    raw = manifest.model_dump()
    del raw["precision"], raw["precision_report"]
    assert Manifest.model_validate(raw) == manifest
    assert dataclasses.is_dataclass(open_bundle(exported("chain").path))
