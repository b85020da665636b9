"""Which channels of which tensor follow which convolution, and which parameters to cut.

One pass over the traced graph, in execution order. A convolution opens a set of channels;
per-channel operations hand them on; a convolution or a linear layer *reads* them; any other
operation needs them all, and makes the convolution that opened them *whole*. To teach the
analysis an operation, add it to a table or a rule here: nothing else in the package asks
what an operation does to channels.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import fx, nn

from rnp_deploy.network.tracing import tensor_shape

__all__ = ["ChannelAnalysis", "Channels", "ConvRole", "ParameterCut", "analyse_channels"]

Role: TypeAlias = Literal["prunable", "follower", "whole"]

_PER_CHANNEL_MODULES: tuple[type[nn.Module], ...] = (
    # activations
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.GELU, nn.Mish,
    nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign,
    # pooling and padding over H and W
    nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.LPPool2d,
    nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d,
    # dropout and nothing at all
    nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity,
)  # fmt: skip
_PER_CHANNEL_FUNCTIONS: frozenset[Any] = frozenset({
    F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.silu, F.gelu, F.mish, F.hardswish,
    F.hardsigmoid, F.hardtanh, F.sigmoid, F.tanh, F.softplus, F.softsign, torch.relu,
    torch.sigmoid, torch.tanh, torch.clamp,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.max_pool2d,
    F.dropout, F.dropout2d,
    operator.neg, torch.abs, torch.square,
})  # fmt: skip
_PER_CHANNEL_METHODS = frozenset({"relu", "sigmoid", "tanh", "clamp", "contiguous", "abs"})
_ADDITIONS: frozenset[Any] = frozenset({operator.add, torch.add, "add"})
_ARITHMETIC: frozenset[Any] = _ADDITIONS | {
    operator.sub, operator.mul, operator.truediv, torch.sub, torch.mul, "sub", "mul",
}  # fmt: skip
_SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Channels:
    """The channels on axis 1 of a tensor: those of ``conv``, each ``repeat`` values long.

    ``repeat`` is 1 for ``[N, C, H, W]`` and H*W once such a tensor is flattened.
    """

    conv: str
    repeat: int = 1


@dataclass(frozen=True)
class ParameterCut:
    """Along ``axis``, the parameter or buffer ``name`` has ``repeat`` values per channel of ``conv``."""

    name: str
    axis: int
    conv: str
    repeat: int = 1


@dataclass(frozen=True)
class ConvRole:
    """What becomes of one convolution, and why, in words."""

    conv: str
    role: Role
    reason: str


@dataclass(frozen=True)
class ChannelAnalysis:
    """What :func:`analyse_channels` found.

    Attributes:
        roles: One entry per convolution, in execution order.
        follows: Node name → the prunable channels its tensor carries. Tensors that are
            not named are full width.
        readers: Names of the conv and linear nodes that read prunable channels.
        cuts: Every parameter and buffer that shrinks with a prunable convolution.
    """

    roles: tuple[ConvRole, ...]
    follows: Mapping[str, Channels]
    readers: frozenset[str]
    cuts: tuple[ParameterCut, ...]

    @property
    def prunable(self) -> tuple[str, ...]:
        """Module paths of the prunable convolutions, in execution order."""
        return tuple(role.conv for role in self.roles if role.role == "prunable")


@dataclass
class _Pass:
    """The state of one pass; conv module paths stand for the channels they open."""

    traced: fx.GraphModule
    calls: Counter[str]
    tied: frozenset[str]
    follows: dict[str, Channels] = field(default_factory=dict)
    readers: dict[str, str] = field(default_factory=dict)
    cuts: list[ParameterCut] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)
    followers: dict[str, str] = field(default_factory=dict)
    convs: list[str] = field(default_factory=list)

    def require(self, channels: Channels | None, reason: str) -> None:
        if channels is not None:
            self.whole.setdefault(channels.conv, reason)

    def cut(self, module: str, channels: Channels, *parameters: str, axis: int = 0) -> None:
        self.cuts += [
            ParameterCut(f"{module}.{name}", axis, channels.conv, channels.repeat) for name in parameters
        ]


def analyse_channels(traced: fx.GraphModule, groups: int) -> ChannelAnalysis:
    """Decide for every convolution whether its output channels can be cut, and what follows.

    Args:
        traced: From :func:`rnp_deploy.network.tracing.trace_backbone`.
        groups: k, the number of channel groups of each prunable convolution.

    Returns:
        Roles with reasons, the channels each tensor follows, and the parameters to cut.
        What is not understood makes its producers whole.
    """
    calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    state = _Pass(traced, calls, _tied_modules(traced))
    for node in traced.graph.nodes:
        channels = _visit(state, node)
        if channels is not None:
            state.follows[node.name] = channels
    for conv in state.convs:
        module = traced.get_submodule(conv)
        if type(module) is nn.Conv2d and conv not in state.whole:
            _refuse_unsuitable(state, conv, module, groups)
    roles = tuple(_role(state, conv) for conv in state.convs)
    prunable = {role.conv for role in roles if role.role == "prunable"}
    return ChannelAnalysis(
        roles=roles,
        follows={n: c for n, c in state.follows.items() if c.conv in prunable},
        readers=frozenset(name for name, conv in state.readers.items() if conv in prunable),
        cuts=tuple(cut for cut in state.cuts if cut.conv in prunable),
    )


def _visit(state: _Pass, node: fx.Node) -> Channels | None:
    inputs = [state.follows.get(source.name) for source in node.all_input_nodes]
    if node.op == "call_module":
        understood, channels = _visit_call(state, node, inputs)
    elif node.op in ("call_function", "call_method"):
        understood, channels = _visit_function(node, inputs)
    else:
        understood, channels = False, None
    if understood:
        return channels
    reason = f"{node.name} ({_describe(state, node)}) needs all its channels"
    if node.op == "output":
        reason = "its channels are the network's output"
    elif node.target in _ADDITIONS:
        reason = f"its channels meet another producer's in the addition {node.name}"
    for each in inputs:
        state.require(each, reason)
    return None


def _visit_call(state: _Pass, node: fx.Node, inputs: list[Channels | None]) -> tuple[bool, Channels | None]:
    """Return (understood, channels of the result)."""
    path = str(node.target)
    module = state.traced.get_submodule(path)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and path not in state.convs:
        state.convs.append(path)
    why = _unusual(state, path, module)
    if why is not None:
        state.whole.setdefault(path, why)
        for channels in inputs:
            state.require(channels, why)
        return True, None
    if len(inputs) != 1:
        return False, None
    return True, _visit_module(state, node, path, module, inputs[0])


def _unusual(state: _Pass, path: str, module: nn.Module) -> str | None:
    """Why a module's weights must not be cut, whatever its kind."""
    if module._forward_hooks or module._forward_pre_hooks:
        return f"{path} has hooks"
    if path in state.tied:
        return f"{path} shares its weights"
    if state.calls[path] > 1 and any(True for _ in (*module.parameters(), *module.buffers())):
        return f"{path} is used more than once"
    return None


def _visit_module(
    state: _Pass, node: fx.Node, path: str, module: nn.Module, channels: Channels | None
) -> Channels | None:
    kind = type(module)
    if kind is nn.Conv2d:
        return _visit_conv(state, node, path, module, channels)  # type: ignore[arg-type]
    if channels is None:
        return None
    if kind is nn.Linear and len(tensor_shape(node) or ()) == 2:
        state.readers[node.name] = channels.conv
        state.cut(path, channels, "weight", axis=1)
        return None
    if kind in _PER_CHANNEL_MODULES or kind is nn.PReLU or (kind is nn.Flatten and _flattens(node)):
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            state.cut(path, channels, "weight")
        return _resized(node, channels) if kind is nn.Flatten else channels
    if kind in _BATCH_NORMS:
        state.cut(path, channels, "weight", "bias", "running_mean", "running_var")
        return channels
    state.require(channels, f"{path} ({kind.__name__}) needs all its channels")
    return None


def _visit_conv(
    state: _Pass, node: fx.Node, path: str, conv: nn.Conv2d, channels: Channels | None
) -> Channels | None:
    if conv.groups == 1:
        if channels is not None:
            state.readers[node.name] = channels.conv
            state.cut(path, channels, "weight", axis=1)
        state.cut(path, Channels(path), "weight", "bias")
        return Channels(path)
    if conv.groups == conv.in_channels == conv.out_channels:
        if channels is None:
            state.whole.setdefault(path, "depthwise, and the tensor it reads is whole")
            return None
        state.followers[path] = channels.conv
        state.cut(path, channels, "weight", "bias")
        return channels
    state.whole.setdefault(path, f"grouped convolution (groups={conv.groups})")
    state.require(channels, f"{path} is a grouped convolution and reads all its channels")
    return None


def _visit_function(node: fx.Node, inputs: list[Channels | None]) -> tuple[bool, Channels | None]:
    """Return (understood, channels of the result)."""
    if not any(inputs):
        return True, None
    target = node.target
    names = _PER_CHANNEL_METHODS if node.op == "call_method" else _PER_CHANNEL_FUNCTIONS
    first = inputs[0]
    if len(inputs) == 1 and first is not None:
        if target in names or target in _ARITHMETIC:
            return True, first
        if (target is torch.flatten and _flattens(node)) or (
            target in (torch.mean, "mean") and _means_over_space(node)
        ):
            return True, _resized(node, first)
        if target in ("size", "dim") or (target is getattr and node.args[1] in _SHAPE_ATTRIBUTES):
            return True, None  # a shape; cutting refuses one that would name channels
    if len(inputs) == 2 and inputs[0] == inputs[1] and target in _ARITHMETIC:
        return True, first  # x * sigmoid(x): one producer, still per channel
    return False, None


def _flattens(node: fx.Node) -> bool:
    before, after = tensor_shape(node.all_input_nodes[0]), tensor_shape(node)
    return before is not None and after is not None and len(after) == 2 and before[0] == after[0]


def _means_over_space(node: fx.Node) -> bool:
    before = tensor_shape(node.all_input_nodes[0])
    dims: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if before is None or len(before) != 4 or not isinstance(dims, tuple | list):
        return False
    return sorted(dim % 4 for dim in dims) == [2, 3]


def _resized(node: fx.Node, channels: Channels) -> Channels:
    before, after = tensor_shape(node.all_input_nodes[0]), tensor_shape(node)
    if before is None or after is None:  # both were checked by the caller
        return channels
    return Channels(channels.conv, channels.repeat * after[1] // before[1])


def _refuse_unsuitable(state: _Pass, path: str, conv: nn.Conv2d, groups: int) -> None:
    first = next(iter(state.convs))
    if path == first:
        state.whole[path] = "the first convolution is never pruned"
    elif path not in state.followers and conv.out_channels % groups:
        state.whole[path] = f"{conv.out_channels} channels do not divide into {groups} groups"


def _role(state: _Pass, conv: str) -> ConvRole:
    if conv in state.followers:
        producer = state.followers[conv]
        if producer in state.whole:
            return ConvRole(conv, "whole", f"depthwise, and {producer}, which it follows, is whole")
        return ConvRole(conv, "follower", f"depthwise: follows {producer}")
    if conv in state.whole:
        return ConvRole(conv, "whole", state.whole[conv])
    kind = type(state.traced.get_submodule(conv))
    if kind is not nn.Conv2d:
        return ConvRole(conv, "whole", f"{kind.__name__} is not a plain 2-d convolution")
    return ConvRole(conv, "prunable", "only convolutions and linear layers read its channels")


def _tied_modules(traced: fx.GraphModule) -> frozenset[str]:
    """Paths of modules one of whose tensors is used by another module or by name too."""
    owners: dict[int, list[str]] = {}
    tensors = (
        *traced.named_parameters(remove_duplicate=False),
        *traced.named_buffers(remove_duplicate=False),
    )
    for name, tensor in tensors:
        owners.setdefault(id(tensor), []).append(name.rpartition(".")[0])
    by_name = {str(node.target).rpartition(".")[0] for node in traced.graph.nodes if node.op == "get_attr"}
    return frozenset(path for paths in owners.values() if len(paths) > 1 for path in paths) | by_name


def _describe(state: _Pass, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(state.traced.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))
