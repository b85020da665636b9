"""Uses of channels that look like understood ones and are not, and decisions no input tells of."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rnp_deploy import Controller
from rnp_deploy.errors import InputError, NothingPrunableError, TracingError
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork, runtime_pruned


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.a, self.b, self.c, self.d = (nn.Conv2d(16, 16, 1) for _ in range(4))
        self.linear = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)
        self.compute = forward

    def forward(self, x):
        return self.compute(self, self.stem(x))


def made(forward, **settings):
    torch.manual_seed(0)
    return RuntimePrunedNetwork.from_backbone(
        Net(forward), torch.zeros(1, 3, 10, 10), min_macs_share=0.0, **settings
    )


def gated(m, s):
    a, b, gate = m.a(s), m.b(s), m.c(s)  # b opens a stage between a and its gate
    product = m.linear((a * gate.sigmoid()).mean((2, 3)))[:, :, None, None]
    return m.head((m.d(b) + product).mean((2, 3)))


CORNERS = {
    "permuted batch": (lambda m, s: m.head(m.linear(m.a(s).flatten(2).permute(2, 0, 1)).mean(0)), "permute"),
    "convolution over a permuted axis": (lambda m, s: m.head(
        F.adaptive_avg_pool2d(m.a(F.pad(s, (4, 4, 4, 4))).permute(0, 2, 1, 3), 1).flatten(1)), "adaptive_avg"),
    "pooling over channels": (lambda m, s: m.head(F.avg_pool2d(m.a(s).flatten(2), 3, 1, 1).mean(2)), "avg_pool2d"),
    "padding of channels": (lambda m, s: m.head(F.pad(m.a(s).mean((2, 3)), (-1, 1))), "pad"),
}  # fmt: skip


@pytest.mark.parametrize(("forward", "words"), CORNERS.values(), ids=CORNERS)
def test_stays_whole(forward, words):
    with pytest.raises(NothingPrunableError, match=f"a: .*{words}"):
        made(forward)


def test_a_gate_may_follow_a_decision_no_input_tells_of(tmp_path):
    network = made(gated)
    roles = {role.conv: role.role for role in network.explain()}
    assert (roles["a"], roles["c"]) == ("prunable", "follower")
    images, options = torch.randn(4, 3, 10, 10), network.random_options(4)
    export_bundle(network, tmp_path / "bundle", verify=1)
    with Controller.load(tmp_path / "bundle", threads=1) as controller, torch.no_grad():
        outputs = controller.run(images.numpy(), options=options.numpy()).outputs
        assert np.allclose(outputs, network.run(images, options), atol=1e-5)


def test_a_weight_passed_by_keyword():
    network = made(lambda m, s: m.head(m.b(F.conv2d(input=s, weight=m.a.weight, bias=m.a.bias)).mean((2, 3))))
    assert [decision.conv for decision in network.decisions] == ["a", "b"]


def test_a_forgotten_reader_is_refused(monkeypatch):
    """Where the analysis is wrong, dropped filters reach the output, and that is seen at once."""
    analyse = runtime_pruned.analyse_channels

    def forgetful(trace, settings):
        return dataclasses.replace(analyse(trace, settings), readers=frozenset())

    monkeypatch.setattr(runtime_pruned, "analyse_channels", forgetful)
    with pytest.raises(TracingError, match="other outputs at option 1"):
        made(lambda m, s: m.head(m.b(m.a(s).relu()).mean((2, 3))))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"skip": ["z*"]}, "'z\\*' matches no convolution"),
        ({"overrides": {"nothing": 2}}, "'nothing' matches no convolution"),
        ({"skip": "a"}, "pass a sequence"),
        ({"groups": 1}, "groups is 1"),
        ({"align": 0}, "align is 0"),
        ({"granularity": "layer"}, "granularity is 'layer'"),
        ({"overrides": {"a": 1}}, "overrides.a is 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        made(lambda m, s: m.head(m.b(m.a(s)).mean((2, 3))), **settings)
