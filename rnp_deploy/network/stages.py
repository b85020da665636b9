"""Cut the traced backbone into stages, with the masks that make it the reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from rnp_deploy.bundle.manifest import TensorManifest
from rnp_deploy.errors import TracingError
from rnp_deploy.network.channels import CHANNEL_AXIS, ChannelAnalysis, Channels
from rnp_deploy.network.graph_rewriting import tensor_shape

__all__ = [
    "Decision",
    "PrunedConv",
    "Stage",
    "cut_stages",
    "mask_channels",
    "pad_channels",
    "pool_features",
]


@dataclass(frozen=True)
class PrunedConv:
    """A convolution for which an option is chosen.

    Attributes:
        conv: Module path in the backbone.
        widths: ``widths[j-1]`` is the number of channels of option j.
        order: The backbone's own channel indices in group order: position i of the
            runtime-pruned network holds the backbone's channel ``order[i]``.
    """

    conv: str
    widths: tuple[int, ...]
    order: tuple[int, ...]


@dataclass(frozen=True)
class Decision:
    """The place where the agent chooses the option of one convolution, or of a block of them.

    Attributes:
        convs: The convolutions, in execution order; the decision is taken before the first.
        features: Name of the pooled tensor ``[N, C_in]`` the agent reads.
        feature_channels: C_in, the full width of what enters the first convolution.
    """

    convs: tuple[PrunedConv, ...]
    features: str
    feature_channels: int

    @property
    def conv(self) -> str:
        """Module path of the first convolution."""
        return self.convs[0].conv

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the first convolution, by option."""
        return self.convs[0].widths

    @property
    def order(self) -> tuple[int, ...]:
        """Channel order of the first convolution."""
        return self.convs[0].order

    def kept(self, option: int) -> dict[str, int]:
        """Convolution → channels kept."""
        return {pruned.conv: pruned.widths[option - 1] for pruned in self.convs}


@dataclass(frozen=True)
class Stage:
    """A piece of backbone between two decisions.

    Attributes:
        index: Position; stage 0 is the stem.
        decision: The decision that opens it, or None for the stem.
        input_decisions: Earlier decisions whose options shape its inputs, ascending.
        inputs: The tensors it takes, before one ``[N]`` option tensor per entry of
            ``option_decisions``.
        outputs: The tensors it gives, in the order of the returned tuple.
        module: Takes and gives full-width tensors; masks what it reads.
    """

    index: int
    decision: int | None
    input_decisions: tuple[int, ...]
    inputs: tuple[TensorManifest, ...]
    outputs: tuple[TensorManifest, ...]
    module: fx.GraphModule

    @property
    def option_decisions(self) -> tuple[int, ...]:
        """The decisions whose options the stage depends on: its inputs', then its own."""
        return self.input_decisions if self.decision is None else (*self.input_decisions, self.decision)


def mask_channels(x: Tensor, option: Tensor, sizes: Sequence[int], axis: int = CHANNEL_AXIS) -> Tensor:
    """Set what lies beyond each sample's option to zero.

    Args:
        x: ``[N, ...]``.
        option: ``[N]`` int, 1..k.
        sizes: ``sizes[j-1]`` is how much of ``axis`` option j keeps.
        axis: 1 in ``[N, C, H, W]``.
    """
    keep = torch.tensor(sizes, device=x.device)[option - 1]
    mask = torch.arange(x.shape[axis], device=x.device) < keep[:, None]
    shape = [1] * x.ndim
    shape[0], shape[axis] = mask.shape
    return torch.where(mask.reshape(shape), x, x.new_zeros(()))


def pad_channels(x: Tensor, option: Tensor, sizes: Sequence[int], axis: int = CHANNEL_AXIS) -> Tensor:
    """As :func:`mask_channels`, where a branch puts zeros for the channels it lacks."""
    return mask_channels(x, option, sizes, axis)


def pool_features(x: Tensor, axis: int = CHANNEL_AXIS) -> Tensor:
    """Global average pooling (paper, section 3.2): ``[N, C, H, W]`` → ``[N, C]``."""
    return x.mean(dim=[i for i in range(1, x.ndim) if i != axis])


def cut_stages(
    traced: fx.GraphModule, analysis: ChannelAnalysis, orders: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[Stage, ...], tuple[Decision, ...]]:
    """Insert masks and pooled features into a copy of the graph, and cut it before each decision.

    The stages share the modules of ``traced``.

    Args:
        traced: A shaped graph; left as it is.
        analysis: Of the same graph.
        orders: Prunable conv path → channel order, kept in the decisions.

    Returns:
        T + 1 stages and T decisions, in execution order.

    Raises:
        TracingError: Something other than a tensor would cross a cut.
    """
    graph = copy.deepcopy(traced.graph)  # the trace itself stays what it was: the full network
    nodes = list(graph.nodes)
    edges = _Edges(graph, analysis)
    first_of = {block[0]: block for block in analysis.blocks}
    decisions, opening = [], []
    for node in nodes:
        if node.op != "call_module" or str(node.target) not in first_of:
            continue
        features = edges.tensor(edges.pool(node))
        convs = tuple(
            PrunedConv(conv, analysis.widths[conv], orders[conv]) for conv in first_of[str(node.target)]
        )
        decisions.append(Decision(convs, features.name, features.shape[0]))
        opening.append(node)
    firsts = []
    for node in nodes:
        if node.name in analysis.padded:
            edges.pad_inputs(node)
        mask = edges.mask_input(node) if node.name in analysis.readers else None
        if node in opening:
            firsts.append(mask or node)
    pieces = _pieces(graph, firsts)
    return tuple(_stage(traced, edges, pieces, s) for s in range(len(pieces))), tuple(decisions)


class _Edges:
    """Names and describes tensors, and inserts what reads their edges."""

    def __init__(self, graph: fx.Graph, analysis: ChannelAnalysis) -> None:
        self._graph = graph
        self._follows = dict(analysis.follows)
        self._decision_of = {conv: t for t, block in enumerate(analysis.blocks) for conv in block}
        self._widths = analysis.widths
        self._padded: dict[fx.Node, fx.Node] = {}
        self.pooled: dict[fx.Node, TensorManifest] = {}
        self.constants: dict[fx.Node, None] = {}  # in execution order
        for node in graph.nodes:
            if node.op not in ("placeholder", "output") and all(
                source in self.constants for source in node.all_input_nodes
            ):
                self.constants[node] = None
        with graph.inserting_before(next(iter(graph.nodes))):
            self.options = tuple(graph.placeholder(f"option_{t}") for t in range(len(analysis.blocks)))

    def tensor(self, node: fx.Node) -> TensorManifest:
        """Describe the tensor a node makes.

        Raises:
            TracingError: It makes none.
        """
        if node in self.pooled:
            return self.pooled[node]
        source = node.all_input_nodes[0] if node.target is pad_channels else node
        shape = tensor_shape(source)
        if shape is None:
            raise TracingError(
                f"{node.name} is not a tensor and is used on both sides of a decision; "
                "read sizes where they are used"
            )
        name = f"{node.name}_out"
        if node.op == "placeholder":
            name = "images"
        elif any(user.op == "output" for user in node.users):
            name = "outputs"
        channels = self._follows.get(node.name)
        if channels is None:
            return TensorManifest(name=name, shape=shape[1:])
        decision, sizes = self._decision_of[channels.conv], self._sizes(channels)
        return TensorManifest(name=name, shape=shape[1:], follows=decision, axis=channels.axis, sizes=sizes)

    def decisions_of(self, nodes: Sequence[fx.Node]) -> set[int]:
        """The decisions that set the size of a tensor among these nodes or their inputs."""
        tensors = {source for node in nodes for source in (node, *node.all_input_nodes)}
        followed = {self._follows[node.name].conv for node in tensors if node.name in self._follows}
        asked = {t for t, option in enumerate(self.options) if option in tensors}
        return {self._decision_of[conv] for conv in followed} | asked

    def pool(self, reader: fx.Node) -> fx.Node:
        """Pool what a convolution reads, where it is made: no later stage has to read it for that."""
        source = reader.all_input_nodes[0]
        name = f"{source.name}_pooled"
        known = next((node for node, tensor in self.pooled.items() if tensor.name == name), None)
        if known is not None:
            return known
        shape = tensor_shape(source)
        if shape is None:
            raise TracingError(f"{source.name} enters a convolution but has no known shape")
        axis = self._follows[reader.name].axis  # a layer's own channels lie where it reads
        with self._graph.inserting_after(source):
            pooled = self._graph.call_function(pool_features, (source, axis))
        if source.name in self._follows:
            with self._graph.inserting_after(pooled):
                pooled = self._call(pad_channels, pooled, self._follows[source.name].at(CHANNEL_AXIS))
        self.pooled[pooled] = TensorManifest(name=name, shape=(shape[axis],))
        return pooled

    def mask_input(self, reader: fx.Node) -> fx.Node:
        """Mask what a convolution or linear layer reads."""
        source = reader.all_input_nodes[0]
        with self._graph.inserting_before(reader):
            mask = self._call(mask_channels, source, self._follows[source.name])
        reader.replace_input_with(source, mask)
        return mask

    def pad_inputs(self, node: fx.Node) -> None:
        """Pad what a node needs at full width, where it is made: no later stage has to know the option."""
        for source in list(node.all_input_nodes):
            if source.name not in self._follows:
                continue
            if source not in self._padded:
                with self._graph.inserting_after(source):
                    self._padded[source] = self._call(pad_channels, source, self._follows[source.name])
            node.replace_input_with(source, self._padded[source])

    def _call(self, function: Callable[..., Tensor], source: fx.Node, channels: Channels) -> fx.Node:
        option = self.options[self._decision_of[channels.conv]]
        return self._graph.call_function(function, (source, option, self._sizes(channels), channels.axis))

    def _sizes(self, channels: Channels) -> tuple[int, ...]:
        return tuple(channels.size(width) for width in self._widths[channels.conv])


def _closure(constants: Iterable[fx.Node], sources: Iterable[fx.Node]) -> list[fx.Node]:
    """The constants that ``sources`` are or depend on, in execution order."""
    needed = set(sources)
    kept = []
    for node in reversed(list(constants)):
        if node in needed:
            needed.update(node.all_input_nodes)
            kept.append(node)
    return kept[::-1]


def _pieces(graph: fx.Graph, firsts: Sequence[fx.Node]) -> list[list[fx.Node]]:
    pieces: list[list[fx.Node]] = [[]]
    for node in graph.nodes:
        if node in firsts:
            pieces.append([])
        if node.op not in ("placeholder", "output"):
            pieces[-1].append(node)
    return pieces


def _stage(traced: fx.GraphModule, edges: _Edges, pieces: list[list[fx.Node]], index: int) -> Stage:
    # What depends on no image has no batch axis: it belongs to each stage that reads it, not to an edge.
    nodes = [node for node in pieces[index] if node not in edges.constants]
    sources = dict.fromkeys(source for node in nodes for source in node.all_input_nodes)
    inputs = [
        source
        for source in sources
        if source not in nodes and source not in edges.options and source not in edges.constants
    ]
    outputs = [
        node for node in nodes if node in edges.pooled or any(user not in nodes for user in node.users)
    ]
    tensors = tuple(edges.tensor(node) for node in inputs)
    decision = index - 1 if index else None
    # Not the inputs' alone: a gate made here may follow a decision of which no input tells.
    input_decisions = sorted(edges.decisions_of(nodes) - {decision})
    graph = fx.Graph()
    copies = {node: graph.placeholder(tensor.name) for node, tensor in zip(inputs, tensors, strict=True)}
    for t in input_decisions if decision is None else [*input_decisions, decision]:
        copies[edges.options[t]] = graph.placeholder(f"option_{t}")
    for node in (*_closure(edges.constants, sources), *nodes):
        copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output(tuple(copies[node] for node in outputs))
    graph.lint()
    return Stage(
        index=index,
        decision=decision,
        input_decisions=tuple(input_decisions),
        inputs=tensors,
        outputs=tuple(edges.tensor(node) for node in outputs),
        module=fx.GraphModule(traced, graph, class_name=f"Stage{index}"),
    )
