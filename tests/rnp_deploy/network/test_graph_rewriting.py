"""What subclasses, reshapes and in-place operations become, and that outputs stay what they were."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import Net, head
from rnp_deploy.network.tracing import trace_backbone
from rnp_deploy.network.widths import analyse_channels
from rnp_deploy.pruning_settings import PruningSettings


class SameConv(nn.Conv2d):
    """Pads by itself, as TensorFlow does."""

    def forward(self, x):
        pads = []
        for size, stride, kernel in zip(
            x.shape[:1:-1], self.stride[::-1], self.kernel_size[::-1], strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, dilation=self.dilation)


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class NormAct(nn.BatchNorm2d):
    """As timm's ``BatchNormAct2d``."""

    def __init__(self, channels, eps=1e-5, momentum=0.1):
        super().__init__(channels, eps, momentum)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        training = self.training or (self.running_mean is None and self.running_var is None)
        mean = self.running_mean if not self.training or self.track_running_stats else None
        var = self.running_var if not self.training or self.track_running_stats else None
        x = F.batch_norm(x, mean, var, self.weight, self.bias, training, self.momentum, self.eps)
        return self.act(self.drop(x))


class FloatLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x.float(), self.weight, bias=self.bias)


def analysed(forward, **modules):
    network = Net(forward, **modules).eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    images = torch.randn(3, 3, 9, 8)
    trace = trace_backbone(network, images)
    with torch.no_grad():
        torch.testing.assert_close(trace.graph_module(images), network(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(trace.graph_module(images[:1]), network(images[:1]), rtol=0, atol=1e-5)
    return trace.graph_module, analyse_channels(trace, PruningSettings(min_macs_share=0.0))


def cut_names(analysis, conv):
    return {(cut.name, cut.axis) for cut in analysis.cuts if cut.conv == conv}


@pytest.mark.parametrize(
    ("conv", "bias"),
    [(SameConv(8, 8, 3, stride=2), True), (SameConv(8, 8, (3, 5), dilation=(2, 1), bias=False), False)],
    ids=["strided", "dilated, no bias"],
)
def test_a_convolution_that_calls_the_function_becomes_a_plain_one(conv, bias):
    traced, analysis = analysed(lambda m, x: head(m, m.d(F.relu(m.c(x)))), c=conv)
    plain = traced.get_submodule("c")
    assert type(plain) is nn.Conv2d
    assert (plain.stride, plain.dilation, plain.kernel_size) == (conv.stride, conv.dilation, conv.kernel_size)
    assert torch.equal(plain.weight, conv.weight)
    assert "c" in analysis.prunable
    assert (plain.bias is not None) is bias
    assert {("c.weight", 0), ("d.weight", 1)} <= cut_names(analysis, "c")


def test_the_subclass_may_read_what_is_pruned():
    _, analysis = analysed(lambda m, x: head(m, m.d(F.relu(m.c(x)))), d=SameConv(8, 8, 3))
    assert ("d.weight", 1) in cut_names(analysis, "c")


def test_a_linear_layer_that_calls_the_function_becomes_a_plain_one():
    traced, analysis = analysed(lambda m, x: head(m, m.c(x)), fc=FloatLinear(8, 4))
    assert type(traced.get_submodule("fc")) is nn.Linear
    assert "c" in analysis.prunable


@pytest.mark.parametrize(
    ("forward", "modules"),
    [
        (lambda m, x: head(m, m.d(m.c(x))), {"c": StandardisedConv(8, 8, 3, padding=1)}),
        (lambda m, x: head(m, m.d(F.conv2d(m.c(x), m.c.weight, padding=1))), {}),
        (lambda m, x: head(m, m.d(m.c(m.c(x)))), {"c": SameConv(8, 8, 3)}),
        (lambda m, x: head(m, m.d(F.conv2d(x, m.c.weight, m.e.bias))), {"e": nn.Conv2d(8, 8, 3)}),
    ],
    ids=["weights worked out", "beside the module", "subclass used twice", "bias of another"],
)
def test_weights_used_otherwise_leave_the_convolution_whole(forward, modules):
    _, analysis = analysed(forward, **modules)
    roles = {role.conv: role.role for role in analysis.roles}
    assert roles["c"] == "whole"


def test_a_norm_with_an_activation_becomes_a_plain_norm_that_trains():
    norm = NormAct(8, eps=1e-3, momentum=0.3)
    traced, analysis = analysed(lambda m, x: head(m, m.d(m.n(m.c(x)))), n=norm)
    plain = traced.get_submodule("n")
    assert type(plain) is nn.BatchNorm2d
    assert (plain.eps, plain.momentum) == (1e-3, 0.3)
    assert ("n.running_mean", 0) in cut_names(analysis, "c")
    before, images = plain.running_mean.clone(), torch.randn(4, 3, 9, 8)
    traced(images)
    assert torch.equal(plain.running_mean, before)
    traced.train()(images)
    assert not torch.equal(plain.running_mean, before)
    assert torch.equal(plain.num_batches_tracked, torch.tensor(1))
    traced(images).sum().backward()
    assert plain.weight.grad is not None


def test_the_norm_of_timm_becomes_a_plain_one():
    import torchvision_models  # noqa: F401 - timm imports torchvision

    layers = pytest.importorskip("timm.layers")
    traced, analysis = analysed(lambda m, x: head(m, m.d(m.n(m.c(x)))), n=layers.BatchNormAct2d(8))
    assert type(traced.get_submodule("n")) is nn.BatchNorm2d
    assert "c" in analysis.prunable


def view_gate(m, x):
    y = m.c(x)
    gate = m.gate(y.mean((2, 3))).sigmoid()
    return head(m, m.d(y * gate.view(gate.shape[0], gate.shape[1], 1, 1)))


def expanded_gate(m, x):
    y = m.c(x)
    gate = m.gate(y.mean((2, 3))).sigmoid().reshape(y.size(0), -1, 1, 1)
    return head(m, m.d(y * gate.expand_as(y)))


def flattened_pixels(m, x):
    return m.fc(m.c(x).flatten(2).mean(-1))


def viewed_pixels(m, x):
    n, c, h, w = m.c(x).shape
    y = m.c2(x).view(n, c, h * w)
    return m.fc(F.relu(y).mean(2))


def unflattened_pixels(m, x):
    y = m.c(x)
    return head(m, m.d(F.relu(y.flatten(2)).view(*y.shape)))


def flattened_one_by_one(m, x):
    y = F.adaptive_avg_pool2d(m.c(x), 1)
    return m.fc(y.view(-1, 8))


def squeezed(m, x):
    return m.fc(F.adaptive_avg_pool2d(m.c(x), 1).squeeze(-1).squeeze(-1))


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(8))

    def forward(self, x):
        return x * self.gamma.view(1, -1, 1, 1)


RESHAPES = [
    (view_gate, {"gate": nn.Linear(8, 8)}, "c"),
    (expanded_gate, {"gate": nn.Linear(8, 8)}, "c"),
    (flattened_pixels, {}, "c"),
    (viewed_pixels, {"c2": nn.Conv2d(8, 8, 1)}, "c2"),
    (unflattened_pixels, {}, "c"),
    (flattened_one_by_one, {}, "c"),
    (squeezed, {}, "c"),
    (lambda m, x: head(m, m.d(m.scale(m.c(x)))), {"scale": Scale()}, "c"),
]
RESHAPE_IDS = ["view gate", "expand_as gate", "flatten 2", "view 3", "unflatten", "view 2", "squeeze", "scale"]  # fmt: skip


@pytest.mark.parametrize(("forward", "modules", "conv"), RESHAPES, ids=RESHAPE_IDS)
def test_channels_follow_through_reshapes_that_keep_them(forward, modules, conv):
    traced, analysis = analysed(forward, **modules)
    found = {role.conv: (role.role, role.reason) for role in analysis.roles}
    assert conv in analysis.prunable, found
    targets = {str(node.target) for node in traced.graph.nodes if node.op == "call_method"}
    assert not targets & {"view", "reshape", "expand", "expand_as", "squeeze"}


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: head(m, m.d(m.c(x).view(x.shape[0], 4, -1, *x.shape[2:]).flatten(1, 2))),
        lambda m, x: m.fc(m.c(x).view(x.shape[0], -1, 8).mean(1)),
        lambda m, x: head(m, m.d(m.c(x).transpose(1, 2).reshape(x.shape))),
    ],
    ids=["split channels", "mixed with pixels", "transposed"],
)
def test_reshapes_that_mix_channels_leave_them_whole(forward):
    _, analysis = analysed(forward)
    assert "c" not in analysis.prunable


def test_flattening_keeps_batch_and_channels_unnamed():
    traced, _ = analysed(lambda m, x: m.big(m.c(x).view(x.size(0), -1)), big=nn.Linear(8 * 72, 4))
    (flatten,) = [node for node in traced.graph.nodes if node.target is torch.flatten]
    assert flatten.args[1:] == (1,)
    assert not [node for node in traced.graph.nodes if node.target == "size"]


def relu_then_sum(m, x):
    y = m.c(x)
    F.relu(y, inplace=True)
    return head(m, m.d(y))


def methods(m, x):
    y = m.c(x).mul_(0.5)
    y.clamp_(-1, 1)
    return head(m, m.d(y.sigmoid_()))


def functions(m, x):
    y = m.c(x)
    torch.relu_(y)
    F.leaky_relu_(y, 0.1)
    return head(m, m.d(torch.sigmoid_(y)))


def augmented(m, x):
    y = m.c(x)
    y *= 2
    y += 1
    return head(m, m.d(y))


def gate_in_place(m, x):
    y = m.c(x)
    y *= m.gate(y.mean((2, 3), keepdim=True)).sigmoid()
    return head(m, m.d(y))


def read_before_and_after(m, x):
    y = m.c(x)
    first = m.e(y)
    y.relu_()
    return head(m, m.d(y) + first)


@pytest.mark.parametrize(
    ("forward", "modules"),
    [
        (relu_then_sum, {}),
        (methods, {}),
        (functions, {}),
        (augmented, {}),
        (gate_in_place, {"gate": nn.Conv2d(8, 8, 1)}),
        (read_before_and_after, {"e": nn.Conv2d(8, 8, 1)}),
        (lambda m, x: head(m, m.d(m.act(m.c(x)))), {"act": nn.Hardswish(inplace=True)}),
    ],
)
def test_in_place_operations_are_written_out_of_place(forward, modules):
    traced, analysis = analysed(forward, **modules)
    assert "c" in analysis.prunable
    for node in traced.graph.nodes:
        assert not str(getattr(node.target, "__name__", node.target)).endswith("_"), node
        assert node.kwargs.get("inplace") is not True
    assert not [module for module in traced.modules() if getattr(module, "inplace", False)]
