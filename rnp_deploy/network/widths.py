"""What becomes of every convolution: roles with reasons, widths, and which share a decision."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping

from torch import fx

from rnp_deploy.bundle.manifest import ConvManifest
from rnp_deploy.errors import InputError
from rnp_deploy.network.channel_rules import is_merge, visit
from rnp_deploy.network.channels import ChannelAnalysis, ParameterCut, Pass
from rnp_deploy.network.graph_rewriting import tensor_shape
from rnp_deploy.network.tracing import Trace
from rnp_deploy.pruning_settings import PruningSettings, option_widths

__all__ = ["analyse_channels"]


def analyse_channels(trace: Trace, settings: PruningSettings) -> ChannelAnalysis:
    """Decide for every convolution whether its output channels can be cut, and what follows.

    Args:
        trace: The backbone.
        settings: What the caller wants.

    Returns:
        Roles with reasons, decisions, the channels each tensor follows, the parameters to
        cut. What is not understood makes its producers whole.
    """
    state = Pass(trace)
    for node in trace.graph_module.graph.nodes:
        channels = visit(state, node)
        if channels is not None:
            state.follows[node.name] = channels
    cuts = [ParameterCut(cut.name, cut.axis, state.resolved(cut.channels)) for cut in state.cuts]
    units: dict[str, int] = {}
    for cut in cuts:
        units[cut.conv] = math.lcm(units.get(cut.conv, 1), cut.channels.unit)
    for pattern in (*settings.skip, *settings.overrides):
        if not fnmatch.filter(state.layers, pattern):
            raise InputError(f"the pattern {pattern!r} matches no convolution; explain() lists them all")
    candidates = {
        conv: option_widths(_channels(state, conv), settings.groups_of(conv), units[conv], settings.align)
        for conv in state.opened
        if conv in state.layers and conv not in state.joined
    }
    why = _whole(state, settings, units, candidates)
    widths = {conv: found for conv, found in candidates.items() if found is not None and conv not in why}
    blocks = _blocks(state, widths, settings.granularity)
    return ChannelAnalysis(
        roles=tuple(_role(state, conv, why, blocks, widths) for conv in state.layers),
        blocks=blocks,
        widths=widths,
        units={conv: units[conv] for conv in widths},
        fixed=frozenset(state.leader(conv) for _, conv in state.padded) & widths.keys(),
        follows={
            name: resolved
            for name, channels in state.follows.items()
            if (resolved := state.resolved(channels)).conv in widths
        },
        readers=frozenset(node.name for node, conv in state.readers if state.leader(conv) in widths),
        padded=frozenset(node.name for node, conv in state.padded if state.leader(conv) in widths),
        cuts=tuple(cut for cut in cuts if cut.conv in widths),
    )


def _whole(
    state: Pass,
    settings: PruningSettings,
    units: Mapping[str, int],
    candidates: Mapping[str, tuple[int, ...] | None],
) -> dict[str, str]:
    """Every convolution that opened channels and has to keep them all → why."""
    why: dict[str, str] = {}
    for conv, reason in state.whole.items():
        why.setdefault(state.leader(conv), reason)
    changed = _changed_macs(state)
    total = sum(node.meta["macs"] for node in state.trace.graph_module.graph.nodes)
    for conv, widths in candidates.items():
        if conv in why:
            continue
        share = changed[conv] / max(total, 1)
        pattern = next((p for p in settings.skip if fnmatch.fnmatchcase(conv, p)), None)
        if conv == next(iter(state.layers)):
            why[conv] = "the first convolution is never pruned"
        elif pattern is not None:
            why[conv] = f"skipped, as {pattern!r} asks"
        elif widths is None:
            groups = settings.groups_of(conv)
            why[conv] = f"{_channels(state, conv)} channels do not divide into {groups} groups"
            if units[conv] > 1:
                why[conv] += f" of whole multiples of {units[conv]}, as a grouped convolution needs"
        elif share < settings.min_macs_share:
            why[conv] = (
                f"its option would change {share:.2%} of the MACs, "
                f"less than min_macs_share={settings.min_macs_share:.2%}"
            )
    return why


def _channels(state: Pass, conv: str) -> int:
    node = state.opened[conv]
    return (tensor_shape(node) or ())[state.follows[node.name].axis]


def _changed_macs(state: Pass) -> dict[str, int]:
    """Conv → MACs of all layers whose weights shrink with its channels, its own among them."""
    macs = {str(n.target): n.meta["macs"] for n in state.trace.graph_module.graph.nodes if n.op != "output"}
    changed = dict.fromkeys(state.opened, 0)
    for layer, conv in {(cut.name.rpartition(".")[0], state.leader(cut.conv)) for cut in state.cuts}:
        changed[conv] += macs.get(layer, 0)
    return changed


def _blocks(
    state: Pass, widths: Mapping[str, tuple[int, ...]], granularity: str
) -> tuple[tuple[str, ...], ...]:
    """Group the prunable convolutions by decision."""
    blocks: list[list[str]] = []
    begins = True
    sizes: dict[str, tuple[int, ...]] = {}  # of each prunable convolution's output
    for node in state.trace.graph_module.graph.nodes:
        begins = begins or is_merge(node)
        conv = str(node.target)
        if node.op != "call_module" or conv not in widths:
            continue
        read = state.follows.get(node.all_input_nodes[0].name)
        producer = None if read is None else state.leader(read.conv)
        pooled = producer in sizes and sizes[producer] != _spatial(node.all_input_nodes[0])
        if granularity == "conv" or begins or pooled or len(widths[blocks[-1][0]]) != len(widths[conv]):
            blocks.append([])
        begins = False
        blocks[-1].append(conv)
        sizes[conv] = _spatial(node)
    return tuple(tuple(block) for block in blocks)


def _spatial(node: fx.Node) -> tuple[int, ...]:
    return (tensor_shape(node) or ())[2:]


def _role(
    state: Pass,
    conv: str,
    why: Mapping[str, str],
    blocks: tuple[tuple[str, ...], ...],
    widths: Mapping[str, tuple[int, ...]],
) -> ConvManifest:
    macs = state.layers[conv]
    if conv in widths:
        decision = next(t for t, block in enumerate(blocks) if conv in block)
        reason = "only convolutions and linear layers read its channels"
        if any(state.leader(producer) == conv for _, producer in state.padded):
            reason = "convolutions and linear layers read its channels, concatenations take them padded"
        return ConvManifest(
            conv=conv, role="prunable", reason=reason, macs=macs, decision=decision, widths=widths[conv]
        )
    reason = state.whole.get(conv) or why.get(conv, "what it reads is laid out in a way not understood")
    if conv in state.followers:
        leader = state.leader(state.followers[conv])
        kind = "a gate" if conv in state.joined else "grouped or depthwise"
        if leader in widths:
            return ConvManifest(conv=conv, role="follower", reason=f"{kind}: follows {leader}", macs=macs)
        reason = state.whole.get(conv) or f"{kind}, and {leader}, which it would follow, is whole"
    return ConvManifest(conv=conv, role="whole", reason=reason, macs=macs)
