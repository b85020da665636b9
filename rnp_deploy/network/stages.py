"""Cut the traced backbone into stages, with the masks that make it the reference."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from rnp_deploy.errors import TracingError
from rnp_deploy.network.channels import ChannelAnalysis, Channels
from rnp_deploy.network.tracing import tensor_shape

__all__ = ["Decision", "Stage", "StageTensor", "cut_stages", "mask_channels", "pool_features"]


@dataclass(frozen=True)
class Decision:
    """The place before one prunable convolution, where the agent chooses its option.

    Attributes:
        conv: Module path of the convolution in the backbone.
        widths: ``widths[j-1]`` is the number of channels of option j.
        order: The backbone's own channel indices in group order: position i of the
            runtime-pruned network holds the backbone's channel ``order[i]``.
        features: Name of the pooled tensor ``[N, C_in]`` the agent reads.
        feature_channels: C_in, the full width of what enters the convolution.
    """

    conv: str
    widths: tuple[int, ...]
    order: tuple[int, ...]
    features: str
    feature_channels: int


@dataclass(frozen=True)
class StageTensor:
    """A tensor on the edge of a stage.

    Attributes:
        name: Unique within the network.
        shape: Full-width shape without the batch axis.
        follows: The decision whose option sets the size of axis 1, or None: full width.
        repeat: Values of axis 1 per channel of that decision.
        pooled: Whether it is pooled features, which are padded with zeros to full width.
    """

    name: str
    shape: tuple[int, ...]
    follows: int | None = None
    repeat: int = 1
    pooled: bool = False


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
    inputs: tuple[StageTensor, ...]
    outputs: tuple[StageTensor, ...]
    module: fx.GraphModule

    @property
    def option_decisions(self) -> tuple[int, ...]:
        """The decisions whose options the stage depends on: its inputs', then its own."""
        return self.input_decisions if self.decision is None else (*self.input_decisions, self.decision)


def mask_channels(x: Tensor, option: Tensor, widths: Sequence[int]) -> Tensor:
    """Set the channels beyond each sample's option to zero.

    Args:
        x: ``[N, C, ...]``.
        option: ``[N]`` int, 1..k.
        widths: ``widths[j-1]`` is how much of axis 1 option j keeps.
    """
    keep = torch.tensor(widths, device=x.device)[option - 1]
    mask = torch.arange(x.shape[1], device=x.device) < keep[:, None]
    return torch.where(mask.reshape(*mask.shape, *[1] * (x.ndim - 2)), x, x.new_zeros(()))


def pool_features(x: Tensor) -> Tensor:
    """Global average pooling (paper, section 3.2): ``[N, C, H, W]`` → ``[N, C]``."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def cut_stages(
    traced: fx.GraphModule,
    analysis: ChannelAnalysis,
    widths: Mapping[str, tuple[int, ...]],
    orders: Mapping[str, tuple[int, ...]],
) -> tuple[tuple[Stage, ...], tuple[Decision, ...]]:
    """Insert masks and pooled features into a copy of the graph, and cut it before each prunable conv.

    The stages share the modules of ``traced``.

    Args:
        traced: A shaped graph; left as it is.
        analysis: Of the same graph.
        widths: Prunable conv path → widths of its options.
        orders: Prunable conv path → channel order, kept in the decisions.

    Returns:
        T + 1 stages and T decisions, in execution order.

    Raises:
        TracingError: Something other than a tensor would cross a cut.
    """
    index_of = {conv: t for t, conv in enumerate(analysis.prunable)}
    graph = copy.deepcopy(traced.graph)  # the trace itself stays what it was: the full network
    nodes = list(graph.nodes)
    edges = _Edges(graph, analysis, index_of, widths)
    opening: list[fx.Node] = []
    pooled: dict[str, fx.Node] = {}
    decisions = []
    for node in nodes:
        conv = str(node.target)
        if node.op != "call_module" or conv not in index_of:
            continue
        source = node.all_input_nodes[0]
        if source.name not in pooled:
            pooled[source.name] = edges.pool(source)
        features = edges.tensor(pooled[source.name])
        decisions.append(
            Decision(
                conv=conv,
                widths=widths[conv],
                order=orders[conv],
                features=features.name,
                feature_channels=features.shape[0],
            )
        )
        opening.append(node)
    firsts = []
    for node in nodes:
        mask = edges.mask_input(node) if node.name in analysis.readers else None
        if node in opening:
            firsts.append(mask or node)
    pieces = _pieces(graph, firsts)
    return tuple(_stage(traced, edges, pieces, s) for s in range(len(pieces))), tuple(decisions)


class _Edges:
    """Names and describes tensors, and inserts what reads their edges."""

    def __init__(
        self,
        graph: fx.Graph,
        analysis: ChannelAnalysis,
        index_of: Mapping[str, int],
        widths: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._graph = graph
        self._follows = dict(analysis.follows)
        self._index_of = index_of
        self._widths = widths
        self.pooled: dict[fx.Node, StageTensor] = {}
        self.constants: dict[fx.Node, None] = {}  # in execution order
        for node in graph.nodes:
            if node.op not in ("placeholder", "output") and all(
                source in self.constants for source in node.all_input_nodes
            ):
                self.constants[node] = None
        with graph.inserting_before(next(iter(graph.nodes))):
            self.options = tuple(graph.placeholder(f"option_{t}") for t in range(len(index_of)))

    def tensor(self, node: fx.Node) -> StageTensor:
        """Describe the tensor a node makes.

        Raises:
            TracingError: It makes none.
        """
        if node in self.pooled:
            return self.pooled[node]
        shape = tensor_shape(node)
        if shape is None:
            raise TracingError(
                f"{node.name} is not a tensor and is used on both sides of a decision; "
                "read sizes where they are used"
            )
        channels = self._follows.get(node.name)
        follows = None if channels is None else self._index_of[channels.conv]
        repeat = 1 if channels is None else channels.repeat
        name = f"{node.name}_out"
        if node.op == "placeholder":
            name = "images"
        elif any(user.op == "output" for user in node.users):
            name = "outputs"
        return StageTensor(name, shape[1:], follows, repeat)

    def pool(self, source: fx.Node) -> fx.Node:
        """Pool a tensor where it is made, so that no later stage has to read it for that."""
        shape = tensor_shape(source)
        if shape is None:
            raise TracingError(f"{source.name} enters a convolution but has no known shape")
        with self._graph.inserting_after(source):
            pooled = self._graph.call_function(pool_features, (source,))
        channels = self._follows.get(source.name)
        if channels is not None:
            with self._graph.inserting_after(pooled):
                pooled = self._mask(pooled, channels)
        follows = None if channels is None else self._index_of[channels.conv]
        self.pooled[pooled] = StageTensor(f"{source.name}_pooled", shape[1:2], follows, pooled=True)
        return pooled

    def mask_input(self, reader: fx.Node) -> fx.Node:
        """Mask what a convolution or linear layer reads."""
        source = reader.all_input_nodes[0]
        with self._graph.inserting_before(reader):
            mask = self._mask(source, self._follows[source.name])
        reader.replace_input_with(source, mask)
        return mask

    def _mask(self, source: fx.Node, channels: Channels) -> fx.Node:
        option = self.options[self._index_of[channels.conv]]
        widths = tuple(width * channels.repeat for width in self._widths[channels.conv])
        return self._graph.call_function(mask_channels, (source, option, widths))


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
    input_decisions = sorted({t.follows for t in tensors if t.follows is not None and not t.pooled})
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
