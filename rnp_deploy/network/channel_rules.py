"""What each operation does to channels: the tables and rules to teach the analysis by.

A rule returns the channels of the operation's result, None for a full-width result, or
:data:`NOT_UNDERSTOOD`, which makes all its producers whole.
"""

from __future__ import annotations

import operator
from typing import Any, Final, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from rnp_deploy.network.channels import CHANNEL_AXIS, Channels, ParameterCut, Pass
from rnp_deploy.network.graph_rewriting import tensor_shape

__all__ = ["is_merge", "visit"]


class _NotUnderstood:
    pass


NOT_UNDERSTOOD: Final = _NotUnderstood()
Result: TypeAlias = Channels | _NotUnderstood | None

#: One value in, one value out.
_ELEMENTWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.GELU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
    nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity,
)  # fmt: skip
_ELEMENTWISE: frozenset[Any] = frozenset({
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.silu, F.gelu, F.mish, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.sigmoid, F.tanh, F.softplus, F.softsign, torch.relu,
    torch.sigmoid, torch.tanh, torch.clamp, F.dropout, F.dropout2d,
    operator.neg, torch.abs, torch.square,
    "relu", "sigmoid", "tanh", "clamp", "contiguous", "clone", "float", "abs", "square",
})  # fmt: skip
#: Functions of other libraries that do nothing outside training.
_IDENTITIES = frozenset({"stochastic_depth", "drop_path"})
#: Over H and W of ``[N, C, H, W]``, each channel by itself.
_SPATIAL_MODULES: tuple[type[nn.Module], ...] = (
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d,
    nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
)  # fmt: skip
_SPATIAL: frozenset[Any] = frozenset({
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.max_pool2d,
})  # fmt: skip
_ADDITIONS: frozenset[Any] = frozenset({operator.add, torch.add, "add"})
_PRODUCTS: frozenset[Any] = frozenset({operator.mul, torch.mul, torch.multiply, "mul", "multiply"})
_ARITHMETIC: frozenset[Any] = _ADDITIONS | _PRODUCTS | {
    operator.sub, operator.truediv, torch.sub, torch.div, "sub", "div",
}  # fmt: skip
_CONCATENATIONS: frozenset[Any] = frozenset({torch.cat, torch.concat, torch.concatenate})
_REDUCTIONS: frozenset[Any] = frozenset({torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"})
_PERMUTATIONS: frozenset[Any] = frozenset({torch.permute, torch.transpose, "permute", "transpose"})
_FUNCTIONAL_CONVS: frozenset[Any] = frozenset({
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
})  # fmt: skip
_NORMS_OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")


def visit(state: Pass, node: fx.Node) -> Channels | None:
    """Follow channels through one node; what is not understood makes its producers whole."""
    inputs = [state.follows.get(source.name) for source in node.all_input_nodes]
    result: Result = NOT_UNDERSTOOD
    if node.op == "call_module":
        result = _visit_call(state, node, inputs)
    elif node.op in ("call_function", "call_method"):
        _note_functional_conv(state, node)
        result = _visit_function(state, node, inputs) if any(inputs) else None
    if not isinstance(result, _NotUnderstood):
        return result
    for channels in inputs:
        state.require(channels, _reason(state, node))
    return None


def is_merge(node: fx.Node) -> bool:
    """Whether a node adds or concatenates several tensors: the end of a block of layers."""
    return node.target in _ADDITIONS | _CONCATENATIONS and len(node.all_input_nodes) > 1


def _reason(state: Pass, node: fx.Node) -> str:
    if node.op == "output":
        return "its channels are the network's output"
    if node.target in _ADDITIONS:
        return f"its channels meet another producer's in the addition {node.name}"
    if node.target in _ARITHMETIC:
        return f"its channels meet others in {node.name}, and cannot follow them"
    if str(node.target) in state.trace.opaque:
        return f"{node.target}, which torch.fx cannot trace, needs all its channels"
    if node.target in (F.layer_norm, F.group_norm):
        return f"{node.name} normalises over its channels"
    kind = type(state.module(str(node.target))) if node.op == "call_module" else node.target
    return f"{node.name} ({getattr(kind, '__name__', kind)}) needs all its channels"


def _visit_call(state: Pass, node: fx.Node, inputs: list[Channels | None]) -> Result:
    path = str(node.target)
    module = state.module(path)
    if path in state.trace.opaque:
        _note_opaque(state, node, path, module)
        return NOT_UNDERSTOOD
    pointwise = type(module) is nn.Linear and len(tensor_shape(node) or ()) == 4
    if isinstance(module, _ConvNd) or pointwise:
        state.layers[path] = state.layers.get(path, 0) + node.meta["macs"]
    why = _unusual(state, path, module)
    if why is not None:
        state.whole.setdefault(path, why)
        for channels in inputs:
            state.require(channels, why)
        return None
    return _visit_module(state, node, path, module, inputs[0]) if len(inputs) == 1 else NOT_UNDERSTOOD


def _note_opaque(state: Pass, node: fx.Node, path: str, module: nn.Module) -> None:
    inner = [name for name, child in module.named_modules() if isinstance(child, _ConvNd)]
    for name in inner:
        conv = f"{path}.{name}" if name else path
        state.layers[conv] = node.meta["macs"] // len(inner)
        why = state.trace.opaque[path]
        state.whole.setdefault(conv, f"inside {path}, which torch.fx cannot trace: {why}")


def _note_functional_conv(state: Pass, node: fx.Node) -> None:
    """List a convolution that is called as a function, under the module whose weight it takes."""
    if node.target not in _FUNCTIONAL_CONVS:
        return
    weights = list(node.all_input_nodes[1:])
    while weights and weights[0].op != "get_attr" and weights[0].all_input_nodes:
        weights = list(weights[0].all_input_nodes)
    conv = str(weights[0].target).rpartition(".")[0] if weights and weights[0].op == "get_attr" else ""
    conv = conv or node.name
    state.layers[conv] = state.layers.get(conv, 0) + node.meta["macs"]
    state.whole.setdefault(conv, "its weights are worked out in forward()")


def _unusual(state: Pass, path: str, module: nn.Module) -> str | None:
    """Why a module's weights must not be cut, whatever its kind."""
    if module._forward_hooks or module._forward_pre_hooks:
        return f"{path} has hooks"
    if "forward" in vars(module):
        return f"{path} has a forward() of its own"
    if path in state.tied:
        return f"{path} shares its weights"
    if state.calls[path] > 1 and any(True for _ in (*module.parameters(), *module.buffers())):
        return f"{path} is used more than once"
    return None


def _visit_module(
    state: Pass, node: fx.Node, path: str, module: nn.Module, channels: Channels | None
) -> Result:
    kind = type(module)
    if kind is nn.Conv2d:
        return _visit_conv(state, node, path, module, channels)  # type: ignore[arg-type]
    if kind is nn.Linear:
        return _visit_linear(state, node, path, channels)
    if isinstance(module, _ConvNd):
        state.whole.setdefault(path, f"{kind.__name__} is not a plain 2-d convolution")
    if channels is None:
        return None
    spatial = channels.axis == CHANNEL_AXIS
    if kind in _ELEMENTWISE_MODULES or (kind in _SPATIAL_MODULES and _is_image(node, channels)):
        return channels
    if kind is nn.PReLU and spatial:
        if module.num_parameters != 1:
            state.cut(path, channels, "weight")
        return channels
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d) and spatial:
        state.cut(path, channels, "weight", "bias", "running_mean", "running_var")
        return channels
    if isinstance(module, _NORMS_OVER_CHANNELS):
        state.require(channels, f"{path} ({kind.__name__}) normalises over its channels")
        return None
    return NOT_UNDERSTOOD


def _visit_conv(state: Pass, node: fx.Node, path: str, conv: nn.Conv2d, channels: Channels | None) -> Result:
    if channels is not None and channels.axis != CHANNEL_AXIS:
        return NOT_UNDERSTOOD
    if conv.groups == 1:
        if channels is not None:
            state.read(path, node, channels)
        return state.open(path, node)
    if channels is None:
        state.whole.setdefault(path, f"grouped (groups={conv.groups}), and the tensor it reads is whole")
        return None
    # Groups of the convolution stay or go whole, and with them what their inputs were made from.
    followed = channels.through(conv.in_channels // conv.groups, conv.out_channels // conv.groups)
    state.followers[path] = channels.conv
    state.cut(path, followed, "weight", "bias")
    return followed


def _visit_linear(state: Pass, node: fx.Node, path: str, channels: Channels | None) -> Result:
    shape = tensor_shape(node) or ()
    if channels is not None:
        if channels.axis != len(shape) - 1:
            return NOT_UNDERSTOOD
        state.read(path, node, channels)
    # On [N, H, W, C] a linear layer is a pointwise convolution. On [N, C] it is never pruned,
    # but as the last layer of a gate it follows what it gates.
    return state.open(path, node, len(shape) - 1) if len(shape) in (2, 4) else None


def _visit_function(state: Pass, node: fx.Node, inputs: list[Channels | None]) -> Result:
    target = node.target
    tensors = [source for source in node.all_input_nodes if tensor_shape(source) is not None]
    if target in _CONCATENATIONS:
        return _visit_concatenation(state, node, inputs)
    if len(tensors) == 1 and len(node.all_input_nodes) == 1 and inputs[0] is not None:
        return _visit_unary(node, inputs[0])
    if len(tensors) == 2 and target in _ARITHMETIC:
        return _visit_arithmetic(state, node, inputs)
    return NOT_UNDERSTOOD


def _visit_unary(node: fx.Node, channels: Channels) -> Result:
    target = node.target
    spatial = channels.axis == CHANNEL_AXIS
    name = getattr(target, "__name__", "")
    if target in _ELEMENTWISE or target in _ARITHMETIC or name in _IDENTITIES:
        return channels
    if target in _SPATIAL and _is_image(node, channels):
        return channels
    if target is F.pad and _is_image(node, channels) and isinstance(node.args[1], tuple | list):
        return channels if len(node.args[1]) <= 4 else NOT_UNDERSTOOD
    if target in _REDUCTIONS:
        return _visit_reduction(node, channels)
    if target in _PERMUTATIONS:
        return _visit_permutation(node, channels)
    if target in (torch.flatten, torch.unflatten, torch.unsqueeze) and spatial:
        return _visit_reshape(node, channels)
    if target is operator.getitem and spatial:
        index = node.args[1]
        kept = isinstance(index, tuple) and all(isinstance(part, slice) for part in index)
        return channels if kept and index[:2] == (slice(None), slice(None)) else NOT_UNDERSTOOD  # type: ignore[index]
    if target in ("size", "dim") or (target is getattr and node.args[1] in _SHAPE_ATTRIBUTES):
        return None  # a size; cutting refuses one that would name channels
    return NOT_UNDERSTOOD


def _is_image(node: fx.Node, channels: Channels) -> bool:
    """Whether a node takes ``[N, C, H, W]``: 2-d pooling of ``[N, C, L]`` would pool over C."""
    return channels.axis == CHANNEL_AXIS and len(tensor_shape(node.all_input_nodes[0]) or ()) == 4


def _visit_reshape(node: fx.Node, channels: Channels) -> Result:
    """Only those of :func:`rnp_deploy.network.graph_rewriting.replace_reshapes`."""
    before, after = tensor_shape(node.all_input_nodes[0]), tensor_shape(node)
    if before is None or after is None or before[0] != after[0]:
        return NOT_UNDERSTOOD
    if len(after) == 2 and after[1] % before[1] == 0:
        return channels.through(1, after[1] // before[1])
    return channels if before[:2] == after[:2] else NOT_UNDERSTOOD


def _visit_reduction(node: fx.Node, channels: Channels) -> Result:
    before, after = tensor_shape(node.all_input_nodes[0]), tensor_shape(node)
    dims: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    dims = (dims,) if isinstance(dims, int) else dims
    if before is None or after is None or not isinstance(dims, tuple | list):
        return NOT_UNDERSTOOD
    reduced = {int(dim) % len(before) for dim in dims}
    if channels.axis in reduced or 0 in reduced:
        return NOT_UNDERSTOOD
    if len(after) == len(before):
        return channels
    return channels.at(channels.axis - sum(dim < channels.axis for dim in reduced))


def _visit_permutation(node: fx.Node, channels: Channels) -> Result:
    after = tensor_shape(node)
    dims: Any = node.kwargs.get("dims", node.args[1:])
    if after is None or (len(node.kwargs) and "dims" not in node.kwargs):
        return NOT_UNDERSTOOD
    if len(dims) == 1 and isinstance(dims[0], tuple | list):
        dims = dims[0]
    order = list(range(len(after)))
    if node.target in (torch.transpose, "transpose"):
        first, second = (int(dim) % len(after) for dim in dims)
        order[first], order[second] = order[second], order[first]
    else:
        order = [int(dim) % len(after) for dim in dims]
    return channels.at(order.index(channels.axis)) if order[0] == 0 else NOT_UNDERSTOOD


def _visit_concatenation(state: Pass, node: fx.Node, inputs: list[Channels | None]) -> Result:
    dim: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    rank = len(tensor_shape(node) or ())
    followed = [channels for channels in inputs if channels is not None]
    if not isinstance(dim, int) or any(channels.axis != dim % rank for channels in followed):
        return NOT_UNDERSTOOD
    state.padded += [(node, channels.conv) for channels in followed]
    return None


def _visit_arithmetic(state: Pass, node: fx.Node, inputs: list[Channels | None]) -> Result:
    (first, second), (a, b) = node.all_input_nodes, inputs
    if a is None:
        first, second, a, b = second, first, b, a
    if a is None:
        return None
    shape, other = tensor_shape(first) or (), tensor_shape(second) or ()
    if b is None:
        fits = len(shape) == len(tensor_shape(node) or ()) and _fits_cut(state, node, a, second)
        return a if fits else NOT_UNDERSTOOD
    if len(shape) != len(other) or a.axis != b.axis or shape[a.axis] != other[b.axis]:
        return NOT_UNDERSTOOD
    if state.resolved(a) == state.resolved(b):
        return a  # x * sigmoid(x): one producer, still per channel
    if node.target in _PRODUCTS and (joined := state.join(a, b)) is not None:
        return joined
    return NOT_UNDERSTOOD


def _fits_cut(state: Pass, node: fx.Node, followed: Channels, other: fx.Node) -> bool:
    """Whether a full-width operand has one value for all channels, or is a parameter that can be cut."""
    rank, shape = len(tensor_shape(node) or ()), tensor_shape(other) or ()
    axis = followed.axis - (rank - len(shape))
    if axis < 0 or shape[axis] == 1:
        return True
    source = other
    while source.op != "get_attr":  # layer scale, perhaps viewed as [1, C, 1, 1]
        if source.target is not torch.reshape or len(source.users) != 1:
            return False
        source = source.all_input_nodes[0]
    parameter = str(source.target)
    vector = source is other or len(tensor_shape(source) or ()) == 1
    if not vector or state.calls[parameter] > 1 or len(source.users) > 1 or parameter not in state.sole:
        return False
    state.cuts.append(ParameterCut(parameter, axis if source is other else 0, followed))
    return True
