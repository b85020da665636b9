"""int8 bundles: what is quantised, with which steps, and that a wrong cut is caught."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from narrow_bundles import made, noise, wrong_slice
from onnx_graphs import run_plain
from rnp_deploy import Controller
from rnp_deploy.errors import EngineError, VerificationError
from rnp_deploy.exporters import bundle_export, export_bundle, quantization
from rnp_deploy.network import RuntimePrunedNetwork
from typed_graphs import graph_with, whole_graphs

SLOW = pytest.mark.slow
FEW = (
    "chain",
    "depthwise",
    *(pytest.param(k, marks=SLOW) for k in ("concatenated", "channels last")),
)


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
        if name.endswith(".weight/scale") and value.shape[0] < full.shape[0]:
            old = value.const_value
            value.const_value = ir.ExternalTensor(
                old.location, old.offset + 4, old.length, old.dtype, shape=old.shape, name=name
            )
    return model


def uncut_scales(stage, tensors, cuts, kept, options, cut=bundle_export.cut_branch):
    without = {name: own for name, own in cuts.items() if not name.endswith(("/scale", "/zero_point"))}
    return cut(stage, tensors, without, kept, options)


@pytest.mark.parametrize("broken", [pytest.param(wrong_slice, marks=SLOW), shifted_scale, uncut_scales])
def test_a_wrong_cut_fails_in_int8(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_export, "cut_branch", broken)
    network = made("chain")
    with pytest.raises((VerificationError, EngineError), match="stage"):
        export_bundle(network, tmp_path / "bundle", precision="int8", data=noise(network), verify=1)
    assert list(tmp_path.iterdir()) == []


class Named(nn.Module):
    """A parameter named as the scale of the images could be."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.last = nn.Linear(8, 10)
        self.images_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)) * self.images_scale
        return self.last(torch.relu(self.second(x)).mean((2, 3)))


def test_parameters_may_have_any_name(tmp_path):
    network = RuntimePrunedNetwork.from_backbone(Named(), torch.zeros(1, 3, 8, 8), 2, min_macs_share=0.0)
    manifest = export_bundle(network, tmp_path / "bundle", precision="int8", data=noise(network), verify=1)
    assert manifest.verification.max_path_deviation < 0.05


def test_wrong_scales_are_told_from_rounding(tmp_path, monkeypatch):
    quantise = quantization._quantise_weight

    def thrice(graph, weight):
        quantise(graph, weight)
        (scale,) = (
            value for name, value in graph.initializers.items() if name.endswith(f"{weight.name}/scale")
        )
        scale.const_value = ir.Tensor(3 * scale.const_value.numpy(), name=scale.name)

    monkeypatch.setattr(quantization, "_quantise_weight", thrice)
    network = made("chain")
    with pytest.raises(VerificationError, match=r"end to end.*\(tolerance 5e-01\).*does not bear int8.*fp16"):
        export_bundle(network, tmp_path / "bundle", precision="int8", data=noise(network), verify=1)
    assert list(tmp_path.iterdir()) == []


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
    assert constants["images/scale"] == pytest.approx(0.02)
    assert constants["w"].dtype == np.int8
    assert np.abs(constants["w"]).max(axis=1).tolist() == [127, 127, 0]
    steps = constants["w/scale"][:, None]
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
