"""Exporting: what lies in the bundle, what is refused, and that a wrong branch is caught."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
import torch

import networks
from rnp_deploy.bundle import open_bundle
from rnp_deploy.errors import EngineError, ExportError, InputError, OutputExistsError, VerificationError
from rnp_deploy.exporters import bundle_export, export_bundle
from rnp_deploy.network import RuntimePrunedNetwork


def small_network():
    backbone, shape = networks.make("chain")
    return RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape))


def test_a_branch_for_every_choice_of_options(exported):
    manifest = open_bundle(exported("chain").path).manifest
    keys = [[(b.input_options, b.output_option) for b in stage.branches] for stage in manifest.stages]
    options = range(1, 5)
    assert keys[0] == [((), None)]
    assert keys[1] == [((), j) for j in options]
    assert keys[2] == [((i,), j) for i, j in itertools.product(options, options)]
    files = [branch.file for branch in manifest.stages[2].branches]
    assert "stages/02/in2-out4.onnx" in files
    assert manifest.stages[0].branches[0].file == "stages/00/full.onnx"
    assert manifest.agent.steps[1].file == "agent/step_01.onnx"


def test_a_residual_trunk_has_no_input_options(exported):
    manifest = open_bundle(exported("basic residual").path).manifest
    assert all(stage.input_decisions == () for stage in manifest.stages)
    assert [len(stage.branches) for stage in manifest.stages] == [1, 4, 4, 4]


def test_branches_physically_lack_the_channels(exported):
    bundle = open_bundle(exported("chain").path)
    graph = onnx.ModelProto.FromString(bundle.graph("stages/02/in2-out3.onnx")).graph
    shapes = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    (input_name,) = (value.name for value in graph.input)
    assert shapes[input_name] == ["N", 8, 8, 8]
    outputs = {tuple(shapes[value.name]) for value in graph.output}
    assert outputs == {("N", 12, 8, 8), ("N", 16)}


def test_every_weight_is_stored_once(exported):
    case = exported("chain")
    parameters = sum(p.numel() * 4 for p in case.network.parameters())
    assert (case.path / "weights.bin").stat().st_size <= parameters * 1.05 + 4096
    for path, data in open_bundle(case.path).graphs.items():
        for tensor in onnx.ModelProto.FromString(data).graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims):
                assert tensor.data_location == onnx.TensorProto.EXTERNAL, (path, tensor.name)


def test_graphs_pass_the_onnx_checker(exported):
    for data in open_bundle(exported("separable").path).graphs.values():
        model = onnx.ModelProto.FromString(data)
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                size = int(np.prod(tensor.dims)) * 4
                del tensor.external_data[:]
                tensor.data_location = onnx.TensorProto.DEFAULT
                tensor.raw_data = b"\0" * size
        onnx.checker.check_model(model, full_check=True)


def test_macs_of_the_manifest_are_the_networks(exported):
    case = exported("bottleneck residual")
    manifest = open_bundle(case.path).manifest
    for options in ([1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 1, 1]):
        assert manifest.path_macs(options) == int(case.network.macs(torch.tensor([options])))
    assert manifest.macs == manifest.path_macs([4] * 4)


def test_the_verification_is_recorded(exported):
    verification = open_bundle(exported("chain").path).manifest.verification
    assert verification.samples == 2
    assert verification.branches == 37
    assert 0 < verification.max_branch_deviation < verification.tolerance
    assert 0 < verification.max_path_deviation < verification.tolerance
    assert verification.worst_branch.startswith("stages/")
    assert verification.agent_decisions == verification.agent_decisions_equal == 6


def test_export_leaves_the_network_as_it_was(tmp_path):
    network = small_network().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_bundle(network, tmp_path / "bundle", verify=0)
    assert network.training
    assert all(module.training for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def wrong_slice(stage, tensors, cuts, kept, options, cut=bundle_export.cut_branch):
    shifted = {name: group[::-1] for name, group in cuts.items()}
    model = cut(stage, tensors, shifted, kept, options)
    for node in model.graph:
        if node.op_type == "Slice":
            starts, ends = node.inputs[1].const_value.numpy(), node.inputs[2].const_value.numpy()
            starts += 1
            ends += 1
    return model


def wrong_option(stage, tensors, cuts, kept, options, cut=bundle_export.cut_branch):
    fewer = {name: max(width - 4, 4) for name, width in kept.items()}
    return cut(stage, tensors, cuts, fewer, options)


@pytest.mark.parametrize("broken", [wrong_slice, wrong_option])
def test_a_wrong_branch_fails_the_export_and_leaves_nothing(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_export, "cut_branch", broken)
    with pytest.raises((VerificationError, EngineError)) as caught:
        export_bundle(small_network(), tmp_path / "bundle")
    assert "stage" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_weight_names_stage_and_options(tmp_path, monkeypatch):
    """The stage is exported from weights that are not the reference's."""
    network = small_network()
    graphs = bundle_export.onnx_graphs

    def disturbed(pieces, opset):
        models = graphs(pieces, opset)
        (model,) = (model for model, piece in zip(models, pieces, strict=True) if piece.where == "stage 2")
        name = next(name for name in model.graph.initializers if name.endswith("bias"))
        value = model.graph.initializers[name]
        value.const_value = type(value.const_value)(value.const_value.raw.detach().clone() + 1.0)
        return models

    monkeypatch.setattr(bundle_export, "onnx_graphs", disturbed)
    with pytest.raises(VerificationError, match=r"stage 2, stages/02/in1-out1\.onnx.*options \(1, 1\)"):
        export_bundle(network, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "where"), [("features.5", "stage 2"), ("encoder", r"agent step 0 \(before features\.2\)")]
)
def test_an_operator_onnx_does_not_know_names_the_stage(module, where, tmp_path, monkeypatch):
    """Though all stages are exported in one call."""
    export = torch.onnx.export

    def refuse(exported, *args, **kwargs):
        if any(name.endswith(f".{module}") for name, _ in exported.named_modules()):
            raise RuntimeError("no such operator")
        return export(exported, *args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ExportError, match=rf"^{where}: .*no such operator"):
        export_bundle(small_network(), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"branches": "all"}, "branches"),
        ({"branches": {"features.5": "outputs", "*": "all"}}, "branches"),
        ({"precision": "fp8"}, "precision"),
        ({"verify": -1}, "verify"),
        ({"verify": 1.5}, "verify"),
    ],
)
def test_bad_arguments(arguments, words, tmp_path):
    with pytest.raises(InputError, match=words):
        export_bundle(small_network(), tmp_path / "bundle", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_other_types_than_float32_are_refused(tmp_path):
    with pytest.raises(InputError, match="float32"):
        export_bundle(small_network().double(), tmp_path / "bundle")


def test_overwriting_has_to_be_asked_for(tmp_path):
    network = small_network()
    export_bundle(network, tmp_path / "bundle", verify=0)
    before = (tmp_path / "bundle" / "manifest.json").read_bytes()
    with pytest.raises(OutputExistsError, match="overwrite"):
        export_bundle(network, tmp_path / "bundle", verify=0)
    export_bundle(network, tmp_path / "bundle", True, verify=0)
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_pooled_features_that_are_rounding_and_nothing_else_do_not_fail(tmp_path):
    """The mean of an instance-normalised tensor is zero; its rounding is no deviation."""
    network = RuntimePrunedNetwork.from_backbone(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.InstanceNorm2d(8, affine=True), torch.nn.Conv2d(8, 8, 3),
            torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 100, 3),
        ),
        torch.zeros(1, 3, 16, 16),
    )  # fmt: skip
    assert export_bundle(network, tmp_path / "bundle").verification.max_branch_deviation < 1e-4
