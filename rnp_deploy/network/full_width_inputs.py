"""Stages that take full-width, zero-padded inputs: k branches each, whatever came before.

The alternative to a branch for every pair of input and output options. The stage that makes
a tensor puts the zeros; where something between there and its readers would turn them into
other values, the stage is left as it is.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import fx, nn

from rnp_deploy.bundle.manifest import TensorManifest
from rnp_deploy.network.stages import Stage, mask_channels, pad_channels

__all__ = ["with_full_width_inputs"]

_KEEP_ZEROS_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Tanh, nn.Mish, nn.Dropout,
    nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten,
)  # fmt: skip
_KEEP_ZEROS = frozenset({
    F.relu, F.relu6, F.leaky_relu, F.silu, F.gelu, F.hardswish, F.tanh, torch.relu, torch.tanh, F.dropout,
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, torch.max_pool2d,
    torch.flatten, torch.unflatten, torch.unsqueeze, torch.permute, torch.transpose, torch.mean,
    "relu", "tanh", "contiguous", "clone", "permute", "transpose", "mean",
})  # fmt: skip


def with_full_width_inputs(stages: tuple[Stage, ...], chosen: Collection[int]) -> tuple[Stage, ...]:
    """Rewrite the chosen stages, and those that make their inputs.

    Args:
        stages: Of a runtime-pruned network; left as they are.
        chosen: Indices of the stages to rewrite. One whose inputs cannot be padded stays
            as it is: its ``input_decisions`` tell.

    Returns:
        As many stages, which together compute the same.
    """
    rewritten = list(stages)
    wide: set[str] = set()
    for index in chosen:
        stage = stages[index]
        followed = {t.name for t in stage.inputs if t.follows is not None}
        told = {t.follows for t in stage.inputs} - {None}
        if followed and told == set(stage.input_decisions) and _keeps_zeros(stage, followed):
            rewritten[index] = _taking_full(stage)
            wide |= followed
    narrow = {t.name for stage in rewritten for t in stage.inputs}
    return tuple(_giving_full(stage, wide, narrow) for stage in rewritten)


def _full(tensor: TensorManifest) -> TensorManifest:
    return TensorManifest(name=f"{tensor.name}_full", shape=tensor.shape)


def _keeps_zeros(stage: Stage, followed: set[str]) -> bool:
    """Whether zeros in the inputs are still zeros where they are masked, or needed in full."""
    reached = {n for n in stage.module.graph.nodes if n.op == "placeholder" and n.target in followed}
    for node in stage.module.graph.nodes:
        sources = [source for source in node.all_input_nodes if source in reached]
        if not sources or node.target in (mask_channels, pad_channels):
            continue
        if node.op == "call_module":
            keeps = type(stage.module.get_submodule(str(node.target))) in _KEEP_ZEROS_MODULES
        else:
            keeps = node.target in _KEEP_ZEROS
        if not keeps or len(node.all_input_nodes) > 1:
            return False
        reached.add(node)
    outputs = {t.follows for t in stage.outputs}
    return not outputs & set(stage.input_decisions)


def _taking_full(stage: Stage) -> Stage:
    module = fx.GraphModule(stage.module, copy.deepcopy(stage.module.graph))
    dropped = {f"option_{t}" for t in stage.input_decisions}
    followed = {t.name for t in stage.inputs if t.follows is not None}
    for node in reversed(module.graph.nodes):  # an option after all that read it
        if node.target in (mask_channels, pad_channels) and str(node.args[1]) in dropped:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.op == "placeholder" and node.target in followed:
            node.target = node.name = f"{node.target}_full"
        elif node.op == "placeholder" and node.target in dropped:
            module.graph.erase_node(node)
    module.recompile()
    inputs = tuple(t if t.follows is None else _full(t) for t in stage.inputs)
    return dataclasses.replace(stage, input_decisions=(), inputs=inputs, module=module)


def _giving_full(stage: Stage, wide: set[str], narrow: set[str]) -> Stage:
    if not any(tensor.name in wide for tensor in stage.outputs):
        return stage
    module = fx.GraphModule(stage.module, copy.deepcopy(stage.module.graph))
    graph = module.graph
    options = {node.target: node for node in graph.nodes if node.op == "placeholder"}
    end = next(node for node in graph.nodes if node.op == "output")
    outputs, nodes = [], []
    for tensor, node in zip(stage.outputs, end.args[0], strict=True):
        if tensor.name not in wide or tensor.name in narrow:
            outputs.append(tensor)
            nodes.append(node)
        if tensor.name in wide:
            arguments = (node, options[f"option_{tensor.follows}"], tensor.sizes, tensor.axis)
            with graph.inserting_before(end):
                nodes.append(graph.call_function(pad_channels, arguments))
            outputs.append(_full(tensor))
    end.args = (tuple(nodes),)
    module.recompile()
    return dataclasses.replace(stage, outputs=tuple(outputs), module=module)
