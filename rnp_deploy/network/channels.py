"""Which channels of which tensor follow which convolution, and which parameters to cut.

One pass over the traced graph, in execution order. A convolution opens a set of channels;
per-channel operations hand them on; a convolution or a linear layer *reads* them; a
concatenation takes them padded with zeros; any other operation needs them all, and makes the
convolution that opened them *whole*. The rules are in
:mod:`rnp_deploy.network.channel_rules`, widths and decisions in
:mod:`rnp_deploy.network.widths`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from rnp_deploy.bundle.manifest import ConvManifest
from rnp_deploy.network.tracing import Trace

__all__ = ["CHANNEL_AXIS", "ChannelAnalysis", "Channels", "ParameterCut", "Pass"]

#: C in ``[N, C, H, W]``
CHANNEL_AXIS = 1


@dataclass(frozen=True)
class Channels:
    """What an axis of a tensor holds: for every ``unit`` channels of ``conv``, ``repeat`` values.

    Attributes:
        conv: Module path of the convolution that opened the channels.
        unit: Channels that only stay or go together; above 1 behind a grouped convolution.
        repeat: 1 for ``[N, C, H, W]``, H*W once such a tensor is flattened.
        axis: 1, or the last one in channels-last tensors.
    """

    conv: str
    unit: int = 1
    repeat: int = 1
    axis: int = CHANNEL_AXIS

    def size(self, width: int) -> int:
        """Values on the axis where ``width`` channels of the convolution are kept."""
        return width // self.unit * self.repeat

    def through(self, taken: int, made: int, axis: int = CHANNEL_AXIS) -> Channels:
        """Every ``taken`` values in a row have become ``made`` values."""
        together = math.lcm(self.repeat, taken)
        return Channels(self.conv, self.unit * together // self.repeat, together // taken * made, axis)

    def at(self, axis: int) -> Channels:
        """The same on another axis."""
        return Channels(self.conv, self.unit, self.repeat, axis)


@dataclass(frozen=True)
class ParameterCut:
    """Along ``axis``, the parameter or buffer ``name`` holds these ``channels`` (whose own axis is void)."""

    name: str
    axis: int
    channels: Channels

    @property
    def conv(self) -> str:
        """The convolution whose option sets the size."""
        return self.channels.conv


@dataclass(frozen=True)
class ChannelAnalysis:
    """What becomes of every convolution, and what follows from it.

    Attributes:
        roles: One entry per convolution, in execution order.
        blocks: Prunable convolutions by decision, in execution order.
        widths: Prunable convolution → channels by option.
        units: Prunable convolution → channels that only stay or go together.
        fixed: Prunable convolutions whose channels have to keep their order, since what
            takes them padded does not know it.
        follows: Node name → the prunable channels its tensor carries. Tensors that are
            not named are full width.
        readers: Names of the nodes that read prunable channels: those not kept are masked.
        padded: Names of the nodes that take prunable channels padded to full width.
        cuts: Every parameter and buffer that shrinks with a prunable convolution.
    """

    roles: tuple[ConvManifest, ...]
    blocks: tuple[tuple[str, ...], ...]
    widths: Mapping[str, tuple[int, ...]]
    units: Mapping[str, int]
    fixed: frozenset[str]
    follows: Mapping[str, Channels]
    readers: frozenset[str]
    padded: frozenset[str]
    cuts: tuple[ParameterCut, ...]

    @property
    def cuts_by_name(self) -> dict[str, list[ParameterCut]]:
        """The cuts of each parameter and buffer that has any."""
        cuts: dict[str, list[ParameterCut]] = {}
        for cut in self.cuts:
            cuts.setdefault(cut.name, []).append(cut)
        return cuts

    @property
    def prunable(self) -> tuple[str, ...]:
        """Module paths of the prunable convolutions, in execution order."""
        return tuple(conv for block in self.blocks for conv in block)


@dataclass
class Pass:
    """The state of one pass; the module path of a convolution stands for the channels it opens.

    Attributes:
        layers: Every convolution → macs, in execution order.
        opened: Paths that opened channels, with the node that did.
        joined: Path → the channels of an earlier one that its own follow.
        follows: Node name → channels.
        readers: (reading node, conv whose channels it reads).
        padded: The same for nodes that take them padded.
        whole: Path → why it must keep all its channels.
        followers: Grouped convolution → what it follows.
        calls: Node target → how many nodes have it.
        tied: Paths of modules one of whose tensors is used by another module or by name too.
        sole: Parameters that are known under one name alone.
    """

    trace: Trace
    layers: dict[str, int] = field(default_factory=dict)
    opened: dict[str, fx.Node] = field(default_factory=dict)
    joined: dict[str, Channels] = field(default_factory=dict)
    follows: dict[str, Channels] = field(default_factory=dict)
    readers: list[tuple[fx.Node, str]] = field(default_factory=list)
    padded: list[tuple[fx.Node, str]] = field(default_factory=list)
    cuts: list[ParameterCut] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)
    followers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        traced = self.trace.graph_module
        self.calls = Counter(str(node.target) for node in traced.graph.nodes if node.op != "output")
        parameters = dict(traced.named_parameters(remove_duplicate=False))
        tensors = {**parameters, **dict(traced.named_buffers(remove_duplicate=False))}
        names = Counter(map(id, tensors.values()))
        shared = {name for name, tensor in tensors.items() if names[id(tensor)] > 1}
        by_name = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
        self.tied = {name.rpartition(".")[0] for name in shared | by_name}
        self.sole = parameters.keys() - shared

    def module(self, path: str) -> nn.Module:
        """The module at a path."""
        return self.trace.graph_module.get_submodule(path)

    def open(self, path: str, node: fx.Node, axis: int = CHANNEL_AXIS) -> Channels:
        """Let a layer's own output channels begin."""
        self.opened[path] = node
        channels = Channels(path, axis=axis)
        self.cut(path, channels, "weight", "bias")
        return channels

    def require(self, channels: Channels | None, reason: str) -> None:
        """Make the producer of these channels whole."""
        if channels is not None:
            self.whole.setdefault(channels.conv, reason)

    def cut(self, module: str, channels: Channels, *parameters: str, axis: int = 0) -> None:
        """Note parameters of a module that shrink with the channels."""
        self.cuts += [ParameterCut(f"{module}.{name}", axis, channels) for name in parameters]

    def read(self, path: str, node: fx.Node, channels: Channels) -> None:
        """A layer whose weights lack the channels its input lacks."""
        self.readers.append((node, channels.conv))
        self.cut(path, channels, "weight", axis=1)

    def leader(self, conv: str) -> str:
        """The convolution whose option counts for the channels of ``conv``."""
        while conv in self.joined:
            conv = self.joined[conv].conv
        return conv

    def resolved(self, channels: Channels) -> Channels:
        """The same channels, in terms of the convolution whose option counts."""
        while channels.conv in self.joined:
            channels = self.joined[channels.conv].through(channels.unit, channels.repeat, channels.axis)
        return channels

    def join(self, a: Channels, b: Channels) -> Channels | None:
        """Where two producers meet value by value, let the later follow the earlier; None where it cannot."""
        order = list(self.opened)
        first, second = sorted((a, b), key=lambda channels: order.index(channels.conv))
        if second.unit != 1 or second.repeat != 1 or self.leader(first.conv) == self.leader(second.conv):
            return None
        if second.conv in self.joined:
            return None
        self.joined[second.conv] = first
        if second.conv in self.layers:
            self.followers[second.conv] = first.conv
        return first
