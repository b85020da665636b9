"""fp16 and bf16 in graphs: where casts stand, and what the types cannot hold."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import networks
from narrow_bundles import made
from rnp_deploy.engines import torch_engine
from rnp_deploy.errors import EngineError, ExportError, VerificationError
from rnp_deploy.exporters import export_bundle
from rnp_deploy.exporters.half_types import give_half_types
from rnp_deploy.network import RuntimePrunedNetwork
from typed_graphs import graph_with, mixed_nodes


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
        give_half_types(model, "fp16", {"images"}, (), "stage 2")


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
    give_half_types(model, "fp16", {"images", "y"}, (), "stage 0")
    # images for Relu, h for both sums, b and c for Add, y at the end; none between a and c
    assert [node.op_type for node in model.graph].count("Cast") == 5
    assert list(mixed_nodes(ir.to_proto(model))) == []


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
            r"stage 1, stages/01/.*not finite in fp16: a number passes 65504.*divisor.*bf16",
        ),
    ],
)  # fmt: skip
def test_what_fp16_cannot_hold(network, error, words, tmp_path):
    with pytest.raises(error, match=words):
        export_bundle(network(), tmp_path / "bundle", precision="fp16", verify=1)
    assert list(tmp_path.iterdir()) == []


class Between(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(torch.relu(self.first(x)))
        return self.last(torch.relu(self.second(x)).mean((2, 3)))


def with_between(between: Callable[[Tensor], Tensor]) -> RuntimePrunedNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        backbone = networks.randomised(Between(between))
        return RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, 3, 8, 8), 2, min_macs_share=0.0)


def test_what_overflows_between_two_operators_is_seen(tmp_path):
    network = with_between(lambda x: torch.log1p(torch.exp(x + 12)))  # 12 to 14, but e^12 is 162755
    with pytest.raises(VerificationError, match=r"not finite in fp16.*bf16"):
        export_bundle(network, tmp_path / "bundle", precision="fp16", verify=1)
    assert export_bundle(network, tmp_path / "bundle", precision="bf16", verify=1)


def test_onnx_runtime_checks_what_torch_refuses(tmp_path, monkeypatch):
    asked = []

    def refuse(path: str) -> None:
        asked.append(path)
        raise EngineError("torch has no such operator here")

    monkeypatch.setattr(torch_engine, "opener", lambda source, device: refuse)
    manifest = export_bundle(made("chain"), tmp_path / "bundle", precision="fp16", verify=1)
    assert len(asked) > manifest.verification.branches
    assert 0 < manifest.verification.max_path_deviation < 5e-3


@pytest.mark.parametrize(
    ("between", "precision", "words"),
    [
        (lambda x: x / torch.sqrt(x.var((2, 3), keepdim=True) + 1e-12), "fp16",
         r"stage 0: the constant 1e-12 that Add \w+ reads rounds to 0 in fp16; raise it, .* bf16 or fp32"),
        (lambda x: x / (x.mean((2, 3), keepdim=True) + 1e-42), "bf16", r"rounds to 0 in bf16; .* in fp32"),
    ],
)  # fmt: skip
def test_a_constant_that_vanishes_is_refused(between, precision, words, tmp_path):
    with pytest.raises(ExportError, match=words):
        export_bundle(with_between(between), tmp_path / "bundle", precision=precision, verify=0)
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_vanishes_is_not(tmp_path):
    network = scaled(lambda net: net.get_parameter("features.2.bias").fill_(1e-12))
    assert export_bundle(network, tmp_path / "bundle", precision="fp16", verify=0)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_factors_of_an_upsampling_are_known_to_shape_inference(precision, tmp_path):
    network = with_between(nn.Upsample(scale_factor=2))
    manifest = export_bundle(network, tmp_path / "bundle", precision=precision, verify=1)
    assert manifest.verification.max_path_deviation < 5e-3
