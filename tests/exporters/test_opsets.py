"""Graphs in opset 17, for readers that know no later one."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import networks
from families import FAMILIES
from narrow_bundles import made
from onnx_graphs import run_plain
from random_networks import RandomCnn
from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.ort_build import build_engine_set
from rnp_deploy.errors import ExportError
from rnp_deploy.exporters import export_bundle
from rnp_deploy.exporters.opsets import lower_opset
from rnp_deploy.network import RuntimePrunedNetwork
from typed_graphs import mixed_nodes, whole_graphs

SHAPE = (2, 6, 4, 4)


def graph_of(kind: str, outputs: int = 1, constants=(), **attributes) -> onnx.ModelProto:
    """One node of opset 18 that reads ``x`` and constants."""
    names = [f"c{i}" if value is not None else "" for i, value in enumerate(constants)]
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(kind, ["x", *names], made, name="it", **attributes)
    ends = [[helper.make_tensor_value_info("x", 1, SHAPE)],
            [helper.make_tensor_value_info(name, 1, None) for name in made]]  # fmt: skip
    weights = [
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in zip(names, constants, strict=True) if name
    ]  # fmt: skip
    graph = helper.make_graph([node], "g", *ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    "model",
    [
        graph_of("ReduceMean", constants=[np.array([2, 3])], keepdims=0, noop_with_empty_axes=0),
        graph_of("ReduceMax", constants=[np.array([-1])]),
        graph_of("ReduceSum", constants=[np.array([1])], keepdims=0),
        graph_of("Pad", constants=[np.array([0, 2]), None, np.array([1])]),
        graph_of("Pad", constants=[np.array([1, 2, 3, 4]), np.float32(7), np.array([-1, 1])]),
        graph_of("Pad", constants=[np.array([0, 1, 0, 0, 0, 2, 0, 0])]),
        graph_of("Split", 3, axis=1, num_outputs=3),
        graph_of("Split", 2, constants=[np.array([2, 4])], axis=1),
        graph_of("Resize", constants=[None, np.array([1, 1, 2, 2], np.float32)], mode="nearest", antialias=0),
        graph_of("Relu"),
    ],
    ids=lambda model: model.graph.node[0].op_type,
)
def test_an_operator_says_the_same_in_opset_17(model):
    lowered = ir.from_proto(model)
    lower_opset(lowered, 17, "stage 3")
    proto = ir.to_proto(lowered)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(proto), full_check=True)
    assert proto.opset_import[0].version == 17
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    expected, got = run_plain(model, {"x": x}), run_plain(proto, {"x": x})
    assert list(expected) == list(got)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize(
    "model",
    [
        graph_of("Mish"),
        graph_of("Split", 4, axis=1, num_outputs=4),
        graph_of("Resize", constants=[None, np.array([1, 1, 2, 2], np.float32)], mode="linear", antialias=1),
        graph_of("ReduceMean", keepdims=0, noop_with_empty_axes=1),
    ],
    ids=lambda model: model.graph.node[0].op_type,
)
def test_what_opset_17_cannot_say_names_stage_and_operator(model):
    kind = model.graph.node[0].op_type
    with pytest.raises(ExportError, match=rf"^stage 3: {kind} \(it\) has no form in ONNX opset 17"):
        lower_opset(ir.from_proto(model), 17, "stage 3")


@pytest.mark.parametrize(
    "parts",
    [
        ["channels last", "mixed"],
        pytest.param(["concatenated", "grouped, linear gate"], marks=pytest.mark.slow),
    ],
)
def test_a_bundle_in_opset_17_gives_the_same(parts, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        backbone = networks.randomised(RandomCnn(parts, 8, True))
        network = RuntimePrunedNetwork.from_backbone(
            backbone, torch.zeros(1, 3, 10, 10), 2, min_macs_share=0.0
        )
    networks.undecided(network)
    manifest = export_bundle(network, tmp_path / "bundle", opset=17, verify=1)
    assert manifest.verification.max_branch_deviation < 1e-5
    for file, model in whole_graphs(tmp_path / "bundle").items():
        assert [entry.version for entry in model.opset_import] == [17], file
        onnx.checker.check_model(model, full_check=True)
        assert TensorProto.FLOAT in {tensor.data_type for tensor in model.graph.initializer}
    images = torch.randn(3, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    with Controller.load(tmp_path / "bundle", threads=1) as controller, torch.no_grad():
        outputs, options = network(images)
        result = controller.run(images.numpy())
        assert result.options.tolist() == options.tolist()
        np.testing.assert_allclose(result.outputs, outputs.numpy(), atol=1e-4 * float(outputs.abs().max()))
    build_engine_set(open_bundle(tmp_path / "bundle"), tmp_path / "engines", verify=2)


@pytest.mark.parametrize(("opset", "ir_version"), [(17, 8), (18, 8), (19, 9), (None, 10)])
def test_a_graph_is_of_the_ir_version_of_its_opset(opset, ir_version, tmp_path):
    export_bundle(made("chain"), tmp_path / "bundle", opset=opset, verify=0)
    for file, model in whole_graphs(tmp_path / "bundle").items():
        assert model.ir_version == ir_version, file


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    "name",
    ["squeezenet", "densenet", "mobilenet_v3", "efficientnet", "regnet_y", "shufflenet_v2", "convnext"],
)
def test_families_in_opset_17(name, precision, tmp_path):
    family = FAMILIES[name]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        backbone = networks.randomised(family.build())
        example = torch.zeros(1, 3, family.size, family.size)
        network = RuntimePrunedNetwork.from_backbone(backbone, example, 2, granularity="block")
    export_bundle(network, tmp_path / "bundle", opset=17, precision=precision, verify=1)
    for file, model in whole_graphs(tmp_path / "bundle").items():
        assert [entry.version for entry in model.opset_import] == [17]
        onnx.checker.check_model(model, full_check=True)
        assert list(mixed_nodes(model)) == [], file
