"""Bundles in another precision than fp32: their types, their verification, and what is refused."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from torch import nn

import networks
from onnx_graphs import run_plain
from random_networks import PARTS, RandomCnn
from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.bundle.manifest import Manifest, Preprocessing
from rnp_deploy.datasets import ArrayImages, ImageData
from rnp_deploy.engines.ort_build import build_engine_set
from rnp_deploy.errors import EngineError, ExportError, InputError, VerificationError
from rnp_deploy.exporters import bundle_export, export_bundle, precision_report, quantization
from rnp_deploy.exporters.half_types import give_half_types
from rnp_deploy.exporters.precision import verifying_opener
from rnp_deploy.network import RuntimePrunedNetwork
from tiny_training import tiny_data, tiny_network
from typed_graphs import mixed_nodes, value_types, whole_graphs

#: Networks of every kind of edge: two-sided options, a trunk, a depthwise follower, padding and gates.
SLOW = pytest.mark.slow
HALF = (
    ("chain", "fp16"), ("depthwise", "fp16"), ("concatenated", "fp16"), ("chain", "bf16"),
    *(
        pytest.param(kind, precision, marks=SLOW)
        for kind in ("depthwise", "basic residual", "separable", "mixed", "channels last")
        for precision in ("fp16", "bf16") if (kind, precision) != ("depthwise", "fp16")
    ),
)  # fmt: skip
FEW = (
    "chain",
    "depthwise",
    *(pytest.param(k, marks=SLOW) for k in ("concatenated", "separable")),
)
HALF_NAMES = {"fp16": "float16", "bf16": "bfloat16"}
REDUCTIONS = {"GlobalAveragePool", "ReduceMean", "Softmax", "LayerNormalization", "InstanceNormalization"}
ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def made(kind: str, groups: int = 2) -> RuntimePrunedNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        if kind in networks.TINY:
            backbone, shape = networks.make(kind)
        else:
            backbone, shape = networks.randomised(RandomCnn([kind], 8, False)), (3, 10, 10)
        network = RuntimePrunedNetwork.from_backbone(
            backbone, torch.zeros(1, *shape), groups, min_macs_share=0.0
        )
    return networks.undecided(network)


def noise(network: RuntimePrunedNetwork) -> ImageData:
    """Random images in the form a network takes; the labels fit no outputs."""
    random, shape = np.random.default_rng(0), network.input_shape
    train, test = (
        ArrayImages(random.standard_normal((n, *shape)).astype(np.float32), random.integers(0, 2, n))
        for n in (24, 4)
    )
    form = Preprocessing(colour="RGB", size=shape[1:], mean=(0.0,) * 3, std=(1.0,) * 3)
    return ImageData(train, test, ("a", "b"), form, "noise")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Callable[..., tuple[RuntimePrunedNetwork, Path, Manifest]]:
    """Kind of network, precision → the network, its bundle, and the manifest; each is exported once."""
    known: dict[tuple[str, str], tuple[RuntimePrunedNetwork, Path, Manifest]] = {}

    def export(kind: str, precision: str = "fp16") -> tuple[RuntimePrunedNetwork, Path, Manifest]:
        if (kind, precision) not in known:
            network, path = made(kind), tmp_path_factory.mktemp(precision) / "bundle"
            data = noise(network) if precision == "int8" else None
            manifest = export_bundle(network, path, precision=precision, data=data, verify=1)
            known[kind, precision] = (network, path, manifest)
        return known[kind, precision]

    return export


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


def wrong_slice(stage, tensors, cuts, kept, options, cut=bundle_export.cut_branch):
    model = cut(stage, tensors, cuts, kept, options)
    for node in model.graph:
        if node.op_type == "Slice":
            for bound in node.inputs[1:3]:
                bound.const_value.numpy()[...] += 1
    return model


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


def graph_with(*nodes: onnx.NodeProto) -> ir.Model:
    ends = [[onnx.helper.make_tensor_value_info(name, 1, ["N", 4])] for name in ("images", "y")]
    graph = onnx.helper.make_graph(nodes, "g", *ends)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("own", 1)]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets))


def branching() -> onnx.NodeProto:
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["images"], ["z"])],
        "b",
        [],
        [onnx.helper.make_tensor_value_info("z", 1, None)],
    )
    return onnx.helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (graph_with(onnx.helper.make_node("Twist", ["images"], ["y"], domain="own")), r"stage 2: own::Twist is no operator"),
        (graph_with(onnx.helper.make_node("Cast", ["images"], ["c"], to=9), branching()), r"stage 2: If holds graphs"),
    ],
)  # fmt: skip
def test_operators_whose_types_are_not_known(model, words):
    with pytest.raises(ExportError, match=words):
        give_half_types(model, "fp16", {"images"}, "stage 2")


def test_a_tensor_is_cast_once_and_sums_meet_without_casts():
    nodes = [
        onnx.helper.make_node("Relu", ["images"], ["h"]),
        onnx.helper.make_node("Softmax", ["h"], ["a"]),
        onnx.helper.make_node("LogSoftmax", ["h"], ["b"]),
        onnx.helper.make_node("Identity", ["a"], ["moved"]),
        onnx.helper.make_node("Softmax", ["moved"], ["c"]),
        onnx.helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    model = graph_with(*nodes)
    give_half_types(model, "fp16", {"images", "y"}, "stage 0")
    # images for Relu, h for both sums, b and c for Add, y at the end; none between a and c
    assert [node.op_type for node in model.graph].count("Cast") == 5
    assert list(mixed_nodes(ir.to_proto(model))) == []


def test_int8_steps_are_those_of_the_ranges():
    random = np.random.default_rng(0)
    weight = random.standard_normal((3, 4)).astype(np.float32) * np.array([[1], [100], [0]], np.float32)
    x = np.float32([[2.54, -1.0, 0.01, 9.0]])  # the last beyond its range
    model = graph_with(onnx.helper.make_node("Gemm", ["images", "w"], ["y"], transB=1))
    proto = ir.to_proto(model)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    model = ir.from_proto(proto)
    quantization._quantise(model.graph, quantization._layers(model.graph), {"images": 2.54})
    constants = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    assert constants["images_scale"] == pytest.approx(0.02)
    assert constants["w"].dtype == np.int8
    assert np.abs(constants["w"]).max(axis=1).tolist() == [127, 127, 0]
    steps = constants["w_scale"][:, None]
    assert (np.abs(constants["w"] * steps - weight) <= steps / 2 + 1e-6).all()
    (y,) = run_plain(ir.to_proto(model), {"images": x}).values()
    clipped = np.rint(x / 0.02).clip(-128, 127) * 0.02
    np.testing.assert_allclose(y, clipped @ (constants["w"] * steps).T, rtol=1e-4, atol=1e-4)


def test_a_weight_with_other_readers_stays_as_it_is():
    nodes = [
        onnx.helper.make_node("Gemm", ["images", "w"], ["h"], transB=1),
        onnx.helper.make_node("Gemm", ["h", "v"], ["g"], transB=1),
        onnx.helper.make_node("MatMul", ["g", "w"], ["k"]),
        onnx.helper.make_node("Gemm", ["k", "u"], ["y"], transB=0),
    ]
    proto = ir.to_proto(graph_with(*nodes))
    proto.graph.initializer.extend(numpy_helper.from_array(np.ones((4, 4), np.float32), n) for n in "wvu")
    layers = quantization._layers(ir.from_proto(proto).graph)
    assert [layer.weight.name for layer in layers] == ["v"]  # of u, axis 0 is what goes in


def test_the_report_counts_what_it_says(narrow):
    network, _, manifest = narrow("chain")
    report = manifest.precision_report
    assert (report.data, report.images, len(report.penalties)) == (None, 16, 6)
    assert report.decisions == 16 * 6 * len(network.decisions)
    assert 0.9 * report.decisions <= report.decisions_equal <= report.decisions
    assert 0 < report.drift_median <= report.drift_p99 < report.margin_median
    assert 0 < report.output_drift_mean <= report.output_drift_max < 1e-2
    assert report.accuracy is report.accuracy_fp32 is None
    assert "random images" in report.lines()[0]


def test_prices_are_where_decisions_differ():
    network = tiny_network()
    assert precision_report._prices(network, None) == pytest.approx(
        (-0.02, -0.000366, 0.0172, 0.1, 0.1324, 1.0), rel=1e-2
    )
    points = [
        CalibrationPoint(penalty=price, accuracy=0.5, macs_share=share, option_counts=())
        for price, share in ((-0.02, 0.9), (0.2, 0.9), (0.3, 0.1), (1.0, 0.1))
    ]
    curve = Calibration(data="d", samples=1, backbone_accuracy=0.5, full_accuracy=0.5, points=tuple(points))
    wanted = (-0.02, 0.06, 0.1, 0.14, 0.22, 1.0)  # a line from 0.9 at -0.02 to 0.1 at 0.3
    assert precision_report._prices(network, curve) == pytest.approx(wanted)
    assert precision_report._prices(tiny_network(penalty_range=None), curve) == (0.1,)


def test_a_report_on_labelled_images(tmp_path):
    manifest = export_bundle(
        tiny_network(), tmp_path / "bundle", precision="fp16", data=tiny_data(), verify=1
    )
    report = manifest.precision_report
    assert (report.data, report.images) == ("digits", 60)
    assert 0 <= report.accuracy <= 1
    assert abs(report.accuracy - report.accuracy_fp32) <= 0.05
    assert "held-out" in report.lines()[0]
    assert "points" in report.lines()[-1]


def test_fp32_has_no_report(exported):
    manifest = open_bundle(exported("chain").path).manifest
    assert (manifest.precision, manifest.precision_report) == ("fp32", None)


@pytest.mark.parametrize("kind", FEW)
def test_int8_quantises_what_convolutions_read(kind, narrow):
    _, path, manifest = narrow(kind, "int8")
    assert all(t.dtype == "float32" for stage in manifest.stages for t in (*stage.inputs, *stage.outputs))
    for file, model in whole_graphs(path).items():
        onnx.checker.check_model(model, full_check=True)
        makers = {output: node for node in model.graph.node for output in node.output}
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type not in ("Conv", "Gemm", "MatMul") or file.startswith("agent"):
                continue
            turned = makers[node.input[1]]
            widened = makers[turned.input[0]] if turned.op_type == "Transpose" else turned
            assert makers[node.input[0]].op_type == widened.op_type == "DequantizeLinear", file
            assert all(constants[name].data_type == TensorProto.FLOAT for name in node.input[2:])
            narrow = makers[makers[node.input[0]].input[0]]
            zero = numpy_helper.to_array(constants[narrow.input[2]])
            assert (zero.dtype, zero.tolist()) == (np.int8, 0)
            weight, scale, zeros = widened.input
            cut = makers[weight].input[0] if weight in makers else weight
            assert constants[cut].data_type == TensorProto.INT8
            for each in (scale, zeros):
                assert list(constants[each].dims) == list(constants[cut].dims)[:1], (file, each)


@pytest.mark.parametrize("kind", FEW)
def test_int8_has_one_scale_for_all_options(kind, narrow):
    network, path, manifest = narrow(kind, "int8")
    scales: dict[tuple[int, str], set[float]] = {}
    graphs = whole_graphs(path)
    for s, stage in enumerate(manifest.stages):
        for branch in stage.branches:
            graph = graphs[branch.file].graph
            constants = {tensor.name: tensor for tensor in graph.initializer}
            for node in graph.node:
                if node.op_type == "QuantizeLinear":
                    scale = float(numpy_helper.to_array(constants[node.input[1]]))
                    scales.setdefault((s, node.input[0]), set()).add(scale)
    assert all(len(values) == 1 and min(values) > 1e-6 for values in scales.values()), scales
    size = (path / "weights.bin").stat().st_size
    backbone = sum(p.numel() for p in network.backbone.parameters())
    agent = sum(p.numel() for p in network.agent.parameters())
    assert size <= 4 * agent + 1.6 * backbone + 64 * 3 * len(list(network.parameters()))


@pytest.mark.parametrize("kind", FEW)
def test_a_controller_runs_int8(kind, narrow):
    network, path, manifest = narrow(kind, "int8")
    images = torch.from_numpy(noise(network).test.images)
    options = network.random_options(4, torch.Generator().manual_seed(7))
    with Controller.load(path, threads=1) as controller, torch.no_grad():
        outputs = controller.run(images.numpy(), options=options.numpy()).outputs
        expected = network.run(images, options).numpy()
    assert 1e-4 < np.abs(outputs - expected).max() / np.abs(expected).max() < 0.05
    assert manifest.verification.max_branch_deviation <= manifest.verification.tolerance < 8e-3
    assert manifest.precision_report.accuracy is None


def shifted_scale(stage, tensors, cuts, kept, options, cut=bundle_export.cut_branch):
    """The scales of the channels behind: they lie one further in the file."""
    model = cut(stage, tensors, cuts, kept, options)
    for name, value in model.graph.initializers.items():
        full = stage.graph.initializers.get(name)
        if name.endswith(".weight_scale") and value.shape[0] < full.shape[0]:
            old = value.const_value
            value.const_value = ir.ExternalTensor(
                old.location, old.offset + 4, old.length, old.dtype, shape=old.shape, name=name
            )
    return model


def uncut_scales(stage, tensors, cuts, kept, options, cut=bundle_export.cut_branch):
    without = {name: own for name, own in cuts.items() if not name.endswith(("_scale", "_zero_point"))}
    return cut(stage, tensors, without, kept, options)


@pytest.mark.parametrize("broken", [pytest.param(wrong_slice, marks=SLOW), shifted_scale, uncut_scales])
def test_a_wrong_cut_fails_in_int8(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_export, "cut_branch", broken)
    network = made("chain")
    with pytest.raises((VerificationError, EngineError), match="stage"):
        export_bundle(network, tmp_path / "bundle", precision="int8", data=noise(network), verify=1)
    assert list(tmp_path.iterdir()) == []


def test_ranges_are_of_what_the_masked_reference_gives():
    """Half of the options the agent's, half random."""
    network = made("chain")
    images = noise(network).train
    network.requires_grad_(False)
    steps = list(quantization._inputs_of_stages(network, network.stages, torch.from_numpy(images.images), 3))
    options = np.stack([steps[t + 1][1][t] for t in range(len(network.decisions))], axis=1)
    assert options.shape == (24, 3)
    assert len({tuple(row) for row in options[12:].tolist()}) > 2
    with torch.no_grad():
        full = network.run(torch.from_numpy(images.images), torch.from_numpy(options))
        inputs, taken = steps[-1]
        feeds = [torch.from_numpy(x) for x in (*inputs.values(), *taken.values())]
        assert torch.allclose(network.stages[-1].module(*feeds)[-1], full, atol=1e-5)


def scaled(change: Callable[[nn.Module], object]) -> RuntimePrunedNetwork:
    network = made("chain")
    with torch.no_grad():
        change(network.backbone)
    return network


@pytest.mark.parametrize(
    ("network", "error", "words"),
    [
        (
            lambda: scaled(lambda net: net.get_parameter("features.2.bias")[3].fill_(70000.0)),
            ExportError,
            r"stage 1: features\.2\.bias holds 70000, beyond the range of fp16; export .* bf16",
        ),
        (
            lambda: scaled(lambda net: net.get_parameter("features.2.weight").mul_(3e5)),
            VerificationError,
            r"stage 1, stages/01/.*not finite in fp16: activations pass 65504.*bf16",
        ),
    ],
)  # fmt: skip
def test_what_fp16_cannot_hold(network, error, words, tmp_path):
    with pytest.raises(error, match=words):
        export_bundle(network(), tmp_path / "bundle", precision="fp16", verify=1)
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


def test_an_engine_set_of_it_is_refused(narrow, tmp_path):
    bundle = open_bundle(narrow("chain")[1])
    with pytest.raises(InputError, match=r"is fp16; engine sets .* load the bundle as it is"):
        build_engine_set(bundle, tmp_path / "engines")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_runs_it_as_it_is(narrow, tmp_path, caplog):
    network, path, _ = narrow("chain")
    with Controller.load(path, threads=1, cache_dir=tmp_path) as controller:
        assert controller.run(np.zeros((1, *network.input_shape), np.float32)).outputs.shape == (1, 10)
    assert "load the bundle as it is" in caplog.text
    assert not [folder for folder in tmp_path.iterdir() if folder.is_dir()]


def test_bundles_of_before_are_fp32(exported):
    manifest = open_bundle(exported("chain").path).manifest
    raw = manifest.model_dump()
    del raw["precision"], raw["precision_report"]
    assert Manifest.model_validate(raw) == manifest
    assert dataclasses.is_dataclass(open_bundle(exported("chain").path))
