"""The role of every convolution, with its reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import Net, head
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.channels import Channels
from rnp_deploy.network.tracing import trace_backbone
from rnp_deploy.network.widths import analyse_channels
from rnp_deploy.pruning_settings import PruningSettings


def roles(forward, groups=4, **modules):
    trace = trace_backbone(Net(forward, **modules).eval(), torch.randn(1, 3, 8, 8))
    analysis = analyse_channels(trace, PruningSettings(groups=groups, min_macs_share=0.0))
    return {role.conv: (role.role, role.reason) for role in analysis.roles}, analysis


def depthwise(channels=8):
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


PRUNABLE = [
    ("relu", lambda m, x: head(m, m.d(F.relu(m.c(x)))), {}),
    ("method relu", lambda m, x: head(m, m.d(m.c(x).relu())), {}),
    ("module activations", lambda m, x: head(m, m.d(m.act(m.c(x)))), {"act": nn.Sequential(nn.SiLU(), nn.Hardswish(), nn.GELU())}),
    ("prelu", lambda m, x: head(m, m.d(m.act(m.c(x)))), {"act": nn.PReLU(8)}),
    ("norm", lambda m, x: head(m, m.d(m.bn(m.c(x)))), {"bn": nn.BatchNorm2d(8)}),
    ("pooling", lambda m, x: head(m, m.d(F.avg_pool2d(m.pool(m.c(x)), 2))), {"pool": nn.MaxPool2d(2)}),
    ("swish by hand", lambda m, x: head(m, m.d(m.c(x) * torch.sigmoid(m.c2(x)) if False else _swish(m.c(x)))), {"c2": nn.Conv2d(8, 8, 1)}),
    ("hardswish by hand", lambda m, x: head(m, m.d(_hardswish(m.c(x)))), {}),
    ("two readers", lambda m, x: _two_readers(m, m.c(x)), {"e": nn.Conv2d(8, 8, 1)}),
    ("depthwise follower", lambda m, x: head(m, m.d(m.dw(m.c(x)))), {"dw": depthwise()}),
    ("read by a grouped conv", lambda m, x: head(m, m.d(m.g(m.c(x)))), {"g": nn.Conv2d(8, 8, 1, groups=4)}),
    ("concatenation", lambda m, x: head(m, m.e(torch.cat([m.c(x), x], 1))), {"e": nn.Conv2d(16, 8, 1)}),
]  # fmt: skip


def _swish(x):
    return x * torch.sigmoid(x)


def _hardswish(x):
    return x * F.relu6(x + 3) / 6


def _two_readers(m, x):
    return head(m, m.d(x) + m.e(F.relu(x)))


@pytest.mark.parametrize(
    ("forward", "modules"), [case[1:] for case in PRUNABLE], ids=[case[0] for case in PRUNABLE]
)
def test_prunable(forward, modules):
    found, analysis = roles(forward, **modules)
    assert found["c"][0] == "prunable", found
    assert "c" in analysis.prunable


WHOLE = [
    ("first", lambda m, x: head(m, m.d(m.c(x))), {}, "stem", "first"),
    ("output", lambda m, x: m.c(x), {}, "c", "output"),
    ("addition", lambda m, x: head(m, m.d(m.c(x) + x)), {}, "c", "addition"),
    ("inplace addition", lambda m, x: head(m, m.d(m.c(x).add_(x))), {}, "c", "addition"),
    ("concatenation of rows", lambda m, x: head(m, m.d(torch.cat([m.c(x), x], 2))), {}, "c", "cat"),
    ("group norm", lambda m, x: head(m, m.d(m.gn(m.c(x)))), {"gn": nn.GroupNorm(2, 8)}, "c", "GroupNorm"),
    ("softmax", lambda m, x: head(m, m.d(m.c(x).softmax(1))), {}, "c", "softmax"),
    ("mean over channels", lambda m, x: head(m, m.d(m.c(x) - m.c2(x).mean(1, keepdim=True))), {"c2": nn.Conv2d(8, 8, 1)}, "c2", "mean"),
    ("shuffle", lambda m, x: head(m, m.d(F.pixel_shuffle(m.c(x), 2).repeat(1, 4, 1, 1))), {}, "c", "pixel_shuffle"),
    ("used twice", lambda m, x: head(m, m.d(m.c(m.c(x)))), {}, "c", "more than once"),
    ("read by a module used twice", lambda m, x: head(m, m.d(m.d(m.c(x)))), {}, "c", "d is used more than once"),
    ("read by a coarsely grouped conv", lambda m, x: head(m, m.g(m.c(x))), {"g": nn.Conv2d(8, 8, 1, groups=2)}, "c", "whole multiples of 4, as a grouped"),
    ("grouped behind the first", lambda m, x: head(m, m.d(m.g(x))), {"g": nn.Conv2d(8, 8, 1, groups=2)}, "g", "stem, which it would follow, is whole"),
    ("grouped", lambda m, x: head(m, m.d(m.g(x.softmax(1)))), {"g": nn.Conv2d(8, 8, 1, groups=2)}, "g", "groups=2"),
    ("depthwise on the trunk", lambda m, x: head(m, m.dw(x)), {"dw": depthwise()}, "dw", "stem, which it would follow, is whole"),
    ("transposed", lambda m, x: head(m, m.t(m.c(x))), {"t": nn.ConvTranspose2d(8, 8, 2)}, "c", "ConvTranspose2d"),
    ("linear over the last axis", lambda m, x: m.f(m.c(x)).mean((1, 2)), {"f": nn.Linear(8, 5)}, "c", "Linear"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("forward", "modules", "conv", "words"), [case[1:] for case in WHOLE], ids=[case[0] for case in WHOLE]
)
def test_whole_with_a_reason(forward, modules, conv, words):
    found, _ = roles(forward, **modules)
    role, reason = found[conv]
    assert role == "whole", found
    assert words in reason


def test_channels_that_do_not_divide_stay_whole():
    found, _ = roles(lambda m, x: head(m, m.d(m.e(m.c(x)))), e=nn.Conv2d(8, 10, 1), d=nn.Conv2d(10, 8, 1))
    assert found["e"] == ("whole", "10 channels do not divide into 4 groups")


def test_a_depthwise_conv_follows_and_its_weights_are_cut():
    found, analysis = roles(lambda m, x: head(m, m.d(m.dw(m.c(x)))), dw=depthwise())
    assert found["dw"] == ("follower", "grouped or depthwise: follows c")
    assert {(cut.name, cut.axis) for cut in analysis.cuts if cut.conv == "c"} == {
        ("c.weight", 0), ("c.bias", 0), ("dw.weight", 0), ("dw.bias", 0), ("d.weight", 1)
    }  # fmt: skip


def test_a_concatenation_takes_its_channels_padded_and_in_their_own_order():
    _, analysis = roles(lambda m, x: head(m, m.e(torch.cat([F.relu(m.c(x)), x], 1))), e=nn.Conv2d(16, 8, 1))
    assert analysis.padded == {"cat"}
    assert analysis.fixed == {"c"}
    assert {(cut.name, cut.axis) for cut in analysis.cuts if cut.conv == "c"} == {
        ("c.weight", 0),
        ("c.bias", 0),
    }


def read_by_name(m, x):
    return head(m, m.d(m.c(x)) + F.conv2d(x, m.c.weight, padding=1))


def hooked(module):
    module.register_forward_hook(lambda _module, _inputs, output: output * 2)
    return module


UNUSUAL = [
    ("weight read by name", read_by_name, {}, "c", "shares"),
    ("hooks", lambda m, x: head(m, m.d(m.h(x))), {"h": hooked(nn.Conv2d(8, 8, 1))}, "h", "hooks"),
    ("parametrized", lambda m, x: head(m, m.d(m.p(x))),
     {"p": nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))}, "p", "plain"),
    ("spectral norm", lambda m, x: head(m, m.d(m.s(x))), {"s": nn.utils.spectral_norm(nn.Conv2d(8, 8, 1))}, "s", "hooks"),
    ("norm without weights used twice", lambda m, x: head(m, m.d(m.bn(m.c(x)))) + head(m, m.d2(m.bn(m.c2(x)))),
     {"bn": nn.BatchNorm2d(8, affine=False), "c2": nn.Conv2d(8, 8, 1), "d2": nn.Conv2d(8, 8, 1)}, "c", "bn is used more than once"),
    ("attribute of a tensor", lambda m, x: m.fc(m.c(x).mean((2, 3)).data), {}, "c", "getattr"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("forward", "modules", "conv", "words"), [case[1:] for case in UNUSUAL], ids=[case[0] for case in UNUSUAL]
)
def test_unusual_weights_stay_whole_and_the_network_what_it_was(forward, modules, conv, words):
    network = Net(forward, **modules, g=nn.Conv2d(4, 8, 1), e=nn.Conv2d(8, 4, 1)).eval()
    network._forward = lambda m, x: forward(m, m.g(F.relu(m.e(x))))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = network(images)
        pruned = RuntimePrunedNetwork.from_backbone(network, images)
        assert torch.allclose(pruned.run(images, pruned.full_options(2)), expected, atol=1e-5)
    found = {role.conv: role for role in pruned.analysis.roles}
    assert found[conv].role == "whole"
    assert words in found[conv].reason
    assert found["e"].role == "prunable"


def test_shared_weights_stay_whole():
    network = Net(lambda m, x: head(m, m.d(m.e(m.c(x)))), e=nn.Conv2d(8, 8, 1))
    network.e.weight = network.d.weight
    trace = trace_backbone(network, torch.randn(1, 3, 8, 8))
    analysis = analyse_channels(trace, PruningSettings(min_macs_share=0.0))
    found = {role.conv: role.reason for role in analysis.roles if role.role == "whole"}
    assert "shares its weights" in found["e"]
    assert "shares its weights" in found["c"]


def test_a_flattened_tensor_repeats_each_channel():
    _, analysis = roles(lambda m, x: m.big(m.c(x).flatten(1)), big=nn.Linear(8 * 64, 3))
    (cut,) = [cut for cut in analysis.cuts if cut.name == "big.weight"]
    assert (cut.axis, cut.conv) == (1, "c")
    assert cut.channels == Channels("c", repeat=64)
