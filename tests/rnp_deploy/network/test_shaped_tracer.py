"""Control flow on shapes is traced; what cannot be is kept as one call."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rnp_deploy.errors import TracingError
from rnp_deploy.network.tracing import trace_backbone

IMAGE = torch.zeros(1, 3, 9, 12)


class Net(nn.Module):
    def __init__(self, forward, **modules):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


class Inner(nn.Module):
    """Chooses by its data; its convolution is hidden from the trace."""

    def __init__(self, condition):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.condition = condition

    def forward(self, x):
        y = self.conv(x)
        return y * 2 if self.condition(x) else y


def positive(x):
    """Asks for values, and is true of any batch."""
    return x.abs().sum() > 0


def assert_traced(network, opaque=()):
    network.eval()
    trace = trace_backbone(network, IMAGE)
    assert list(trace.opaque) == list(opaque)
    for batch in (1, 3):
        images = torch.randn(batch, *IMAGE.shape[1:])
        with torch.no_grad():
            torch.testing.assert_close(trace.graph_module(images), network(images), rtol=0, atol=1e-5)
    return trace


def by_height(m, x):
    return m.b(m.a(x)) if x.shape[2] < x.shape[3] else m.a(x)


def by_size(m, x):
    y = m.a(x)
    return m.b(y) if y.size(-1) == 6 and y.size()[2] == 5 else y


def by_channels(m, x):
    return m.b(x) if x.shape[1] == 8 else m.b(m.a(x))


def by_rank(m, x):
    return m.b(m.a(x)) if x.ndim == 4 and x.dim() == 4 and len(x.shape) == 4 else x[None]


def by_dtype(m, x):
    return m.a(x) if x.dtype == torch.float32 else m.b(m.a(x.float()))


def unpacked(m, x):
    n, c, h, w = m.a(x).shape
    y = m.a(x).view(n, 2, c // 2, h, w).transpose(1, 2)
    return m.b(y.reshape(n, c, h, w))


def looped(m, x):
    y = m.a(x)
    while y.shape[-1] > 2:
        y = F.avg_pool2d(m.b(y), 2)
    return y


def padded_to_even(m, x):
    height, width = x.shape[-2:]
    return m.b(m.a(F.pad(x, [0, width % 2, 0, height % 2])))


def padded_to_same(m, x):
    pads = []
    for size in (x.shape[3], x.size(2)):
        total = max((-(-size // 2) - 1) * 2 + 3 - size, 0)
        pads += [total // 2, total - total // 2]
    return F.conv2d(F.pad(x, pads), m.a.weight, m.a.bias, stride=2)


def scaled_by_size(m, x):
    y = m.a(x)
    return m.b(y) * (y.shape[1] ** -0.5) / y.shape[2]


def interpolated(m, x):
    return F.interpolate(m.b(m.a(x)), size=x.shape[2:])


@pytest.mark.parametrize(
    "forward",
    [
        by_height, by_size, by_channels, by_rank, by_dtype, unpacked, looped, padded_to_even, padded_to_same,
        scaled_by_size, interpolated,
    ],
)  # fmt: skip
def test_what_asks_for_shapes_is_traced(forward):
    assert_traced(Net(forward))


def test_paddings_are_numbers_in_the_graph():
    trace = assert_traced(Net(padded_to_even))
    (pad,) = [node for node in trace.graph_module.graph.nodes if node.target is F.pad]
    assert list(pad.args[1]) == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "condition",
    [positive, lambda x: bool((x.abs() >= 0).all()), lambda x: float(x.abs().max()) < 0],
    ids=["sum", "all", "float"],
)
def test_a_module_that_looks_at_its_data_is_kept_as_one_call(condition):
    network = Net(lambda m, x: m.b(F.relu(m.inner(m.a(x)))), inner=Inner(condition))
    trace = assert_traced(network, opaque=["inner"])
    called = [str(node.target) for node in trace.graph_module.graph.nodes if node.op == "call_module"]
    assert called == ["a", "inner", "b"]
    assert trace.opaque["inner"]


def test_the_innermost_module_alone_is_kept():
    inner = nn.Sequential(nn.Conv2d(8, 8, 1), Inner(positive), nn.Sequential(nn.Conv2d(8, 8, 1)))
    trace = assert_traced(Net(lambda m, x: m.b(m.s(m.a(x))), s=inner), opaque=["s.1"])
    called = [str(node.target) for node in trace.graph_module.graph.nodes if node.op == "call_module"]
    assert called == ["a", "s.0", "s.1", "s.2.0", "b"]


def test_a_module_kept_as_one_call_may_be_called_twice():
    network = Net(lambda m, x: m.inner(m.b(m.inner(m.a(x)))), inner=Inner(positive))
    assert_traced(network, opaque=["inner"])


class Gate(nn.Module):
    """Asks for the batch size, in a module."""

    def forward(self, x):
        return x * 2 if x.shape[0] > 100 else x


def test_a_module_that_looks_at_the_batch_size_is_kept_as_one_call():
    assert_traced(Net(lambda m, x: m.b(m.gate(m.a(x))), gate=Gate()), opaque=["gate"])


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(m.a(x)) if x.shape[0] > 1 else m.a(x),
        lambda m, x: m.b(m.a(x)) if x.size(0) == 1 else m.a(x),
        lambda m, x: torch.cat([m.a(x[i : i + 1]) for i in range(x.shape[0])]),
        lambda m, x: torch.cat([m.a(image[None]) for image in x]),
        lambda m, x: m.a(x) if x.max() > 0 else m.b(m.a(x)),
    ],
    ids=["shape", "size", "range", "iteration", "data"],
)
def test_control_flow_in_the_network_itself_is_refused(forward):
    with pytest.raises(TracingError, match=r"cannot trace Net.*control flow"):
        trace_backbone(Net(forward), IMAGE)
