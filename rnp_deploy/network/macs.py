"""Multiply-accumulates per stage and choice of options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from rnp_deploy.network.channels import ChannelAnalysis, ParameterCut

__all__ = ["LayerMacs", "layer_macs"]


@dataclass(frozen=True)
class LayerMacs:
    """The MACs of one layer for one image: its full cost and the cuts of its weight.

    A convolution costs ``out_channels · in_channels/groups · kH · kW · H_out · W_out``, a
    linear layer ``out · in`` per position, a matrix product likewise. Biases, norms and
    activations count nothing, as in the paper's tables.
    """

    full: int
    cuts: tuple[ParameterCut, ...]

    def at(self, widths: Mapping[str, tuple[int, int]]) -> int:
        """MACs where ``widths[conv]`` is (kept channels, all channels); others are kept whole."""
        macs = self.full
        for cut in self.cuts:
            kept, full = widths.get(cut.conv, (1, 1))
            macs = macs * kept // full
        return macs


def layer_macs(analysis: ChannelAnalysis, graph: fx.Graph) -> tuple[LayerMacs, ...]:
    """The layers of one stage's graph that multiply, in execution order.

    Args:
        analysis: Of the whole network.
        graph: The stage's; ``meta["macs"]`` of a node are its multiply-accumulates.
    """
    cuts = analysis.cuts_by_name
    return tuple(
        LayerMacs(node.meta["macs"], tuple(cuts.get(f"{node.target}.weight", ())))
        for node in graph.nodes
        if node.meta.get("macs")
    )
