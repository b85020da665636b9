"""Multiply-accumulates of convolutions and linear layers, per stage and choice of options."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

from rnp_deploy.network.channels import ChannelAnalysis, ParameterCut

__all__ = ["LayerMacs", "layer_macs"]


class LayerMacs:
    """The MACs of one layer for one sample, as a product of its full cost and two shares.

    A convolution costs ``out_channels · in_channels/groups · kH · kW · H_out · W_out``; a
    linear layer ``out · in`` per position. Biases, norms and activations count nothing,
    as in the paper's tables.
    """

    def __init__(self, full: int, input_cut: str | None, output_cut: str | None) -> None:
        self.full = full
        self.input_cut = input_cut
        self.output_cut = output_cut

    def at(self, widths: Mapping[str, tuple[int, int]]) -> int:
        """MACs where ``widths[conv]`` is (kept channels, all channels) of a prunable conv."""
        macs = self.full
        for cut in (self.input_cut, self.output_cut):
            if cut is not None:
                kept, full = widths[cut]
                macs = macs * kept // full
        return macs


def layer_macs(traced: fx.GraphModule, analysis: ChannelAnalysis, nodes: fx.Graph) -> tuple[LayerMacs, ...]:
    """The layers of one stage's graph that multiply, in execution order.

    Args:
        traced: Where the modules live.
        analysis: Of the whole network.
        nodes: The stage's graph; node metadata holds the full-width shapes.
    """
    cuts = {(cut.name, cut.axis): cut for cut in analysis.cuts}
    layers = []
    for node in nodes.nodes:
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        meta = node.meta.get("tensor_meta")
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) or not isinstance(
            meta, TensorMetadata
        ):
            continue
        positions = math.prod(meta.shape[1:])
        if isinstance(module, nn.Linear):
            per_output = module.in_features
        else:
            per_output = module.in_channels // module.groups * math.prod(module.kernel_size)
        weight = f"{node.target}.weight"
        layers.append(
            LayerMacs(positions * per_output, _conv(cuts.get((weight, 1))), _conv(cuts.get((weight, 0))))
        )
    return tuple(layers)


def _conv(cut: ParameterCut | None) -> str | None:
    return None if cut is None else cut.conv
