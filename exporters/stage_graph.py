"""Torch modules → ONNX graphs that can be cut: parameters by name, no channel constants."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import opset18 as op
from onnxscript import optimizer
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rnp_deploy.errors import ExportError
from rnp_deploy.exporters.opsets import IR_VERSIONS, OLDEST_TORCH_OPSET, lower_opset
from rnp_deploy.network.agent import AgentStep
from rnp_deploy.network.stages import Stage, mask_channels, pad_channels

__all__ = [
    "ZEROS_FOLLOW",
    "Piece",
    "add_constant",
    "agent_step_piece",
    "onnx_graphs",
    "replace_node",
    "stage_piece",
]

OPSET = 20
#: Domain and type of the node that marks where channels that are pruned count as zeros. Where it is ``padded``
#: a branch puts these zeros; else it lacks the channels there, and the mark is for who masks the full width.
ZEROS_FOLLOW = ("rnp_deploy", "ZerosFollow")
_BATCH = 2  # torch.export would take a batch of 1 for a constant


def _zeros_follow(x: Tensor, decision: int, axis: int, sizes: Sequence[int], padded: int = 1) -> Tensor:
    domain, kind = ZEROS_FOLLOW
    attributes: dict[str, Any] = {
        "decision": decision, "axis": axis, "sizes": list(sizes), "rank": x.ndim, "padded": padded
    }  # fmt: skip
    return torch.onnx.ops.symbolic(
        f"{domain}::{kind}", (x,), attributes, dtype=x.dtype, shape=x.shape, version=1
    )


@dataclass(frozen=True)
class Piece:
    """A module to export: its example inputs, and the names of its inputs and outputs.

    ``where`` names it in errors.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    where: str


def stage_piece(stage: Stage, *, masks: bool = False) -> Piece:
    """A stage at full width, its masks taken out, or left as marks, and its batch norms folded."""
    example = next(iter(stage.module.parameters()), torch.zeros(()))
    return Piece(
        _unmasked(stage, masks),
        tuple(torch.zeros(_BATCH, *tensor.shape, dtype=example.dtype) for tensor in stage.inputs),
        tuple(tensor.name for tensor in stage.inputs),
        tuple(tensor.name for tensor in stage.outputs),
        f"stage {stage.index}",
    )


def agent_step_piece(step: AgentStep, feature_channels: int, state_size: int, where: str) -> Piece:
    """An agent step: features, state, penalty → q_values, option, next_state."""
    inputs = (torch.zeros(_BATCH, feature_channels), torch.zeros(_BATCH, state_size), torch.zeros(_BATCH))
    return Piece(step, inputs, ("features", "state", "penalty"), ("q_values", "option", "next_state"), where)


def onnx_graphs(pieces: Sequence[Piece], opset: int = OPSET) -> tuple[ir.Model, ...]:
    """Export modules to ONNX: all in one call of torch.onnx, whose fixed cost is the most of it.

    Initializers keep the parameters' names in their module. Nothing in a graph repeats a
    channel count, but for initializers and the ``group`` of grouped convolutions.

    Raises:
        ExportError: torch.onnx cannot export one of them, or the opset lacks an operator; it is named.
    """
    names = [tuple(f"{i}/{name}" for name in piece.input_names) for i, piece in enumerate(pieces)]
    output_names = [tuple(f"{i}/{name}" for name in piece.output_names) for i, piece in enumerate(pieces)]
    try:
        model = _onnx_from_torch(pieces, names, output_names, max(opset, OLDEST_TORCH_OPSET))
    except ExportError:
        for piece in pieces if len(pieces) > 1 else ():
            onnx_graphs([piece], opset)
        raise
    models = tuple(_extracted(model, *ends) for ends in zip(names, output_names, strict=True))
    if opset < OLDEST_TORCH_OPSET:
        for piece, own in zip(pieces, models, strict=True):
            lower_opset(own, opset, piece.where)
    for own in models:
        own.ir_version = IR_VERSIONS.get(opset, own.ir_version)
    return models


class _SideBySide(nn.Module):
    """Modules that share nothing but parameters, as one."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__()
        self.pieces = nn.ModuleList(piece.module for piece in pieces)
        self.counts = [len(piece.inputs) for piece in pieces]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for module, count in zip(self.pieces, self.counts, strict=True):
            made = module(*inputs[:count])
            outputs += made if isinstance(made, tuple) else (made,)
            inputs = inputs[count:]
        return tuple(outputs)


def _extracted(model: ir.Model, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> ir.Model:
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    for value in (*graph.inputs, *graph.outputs):
        value.name = str(value.name).partition("/")[2]
    initializers = {
        name: graph.initializers.pop(name) for name in model.graph.initializers if name in graph.initializers
    }
    for value in initializers.values():  # in the model's order: extract() gives them in any
        # pieces.3.features.0.weight, where 3 is the first piece that has the parameter
        parts = str(value.name).split(".", 2)
        if parts[0] == "pieces" and len(parts) == 3:
            value.name = parts[2]
        graph.register_initializer(value)
    return ir.Model(graph, ir_version=model.ir_version)


def _unmasked(stage: Stage, masks: bool) -> fx.GraphModule:
    """The stage without masks: a branch physically lacks what they would set to zero.

    Where zeros have to stand, a placeholder remembers how many; with ``masks``, where one was, too.
    """
    module = fx.GraphModule(stage.module, copy.deepcopy(stage.module.graph))
    for node in reversed(module.graph.nodes):  # an option after all that read it
        if node.target is mask_channels and not masks:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target in (mask_channels, pad_channels):
            x, option, sizes, axis = node.args
            decision, padded = int(str(option).removeprefix("option_")), int(node.target is pad_channels)
            node.target, node.args = _zeros_follow, (x, decision, axis, list(sizes), padded)
        elif node.op == "placeholder" and not node.users and node.name.startswith("option_"):
            module.graph.erase_node(node)
    _fold_batch_norms(module)
    module.graph.lint()
    module.recompile()
    return module.eval()


def _fold_batch_norms(module: fx.GraphModule) -> None:
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    for node in list(module.graph.nodes):
        conv_node = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(conv_node, fx.Node) or conv_node.op != "call_module" or len(conv_node.users) > 1:
            continue
        norm, conv = module.get_submodule(str(node.target)), module.get_submodule(str(conv_node.target))
        if type(norm) is not nn.BatchNorm2d or type(conv) is not nn.Conv2d:
            continue
        if norm.track_running_stats and calls[str(conv_node.target)] == 1:
            module.set_submodule(str(conv_node.target), fuse_conv_bn_eval(conv.eval(), norm.eval()))
            node.replace_all_uses_with(conv_node)
            module.graph.erase_node(node)


def _asinh(x: Any) -> Any:
    """sign(x) log(|x| + sqrt(x² + 1)): ONNX Runtime has no Asinh on CUDA, and the agent takes it of the penalty."""
    return op.Mul(
        op.Sign(x), op.Log(op.Add(op.Abs(x), op.Sqrt(op.Add(op.Mul(x, x), op.Constant(value_float=1.0)))))
    )


def _onnx_from_torch(
    pieces: Sequence[Piece],
    names: Sequence[tuple[str, ...]],
    output_names: Sequence[tuple[str, ...]],
    opset: int,
) -> ir.Model:
    # A batch size of its own for each piece, or one would ask another's input for it.
    batches = [torch.export.Dim(f"N{i}", min=1, max=2**20) for i in range(len(pieces))]
    where = pieces[0].where
    try:
        with _quiet():
            program = torch.onnx.export(
                _SideBySide(pieces),
                tuple(x for piece in pieces for x in piece.inputs),
                dynamo=True,
                # The exporter's own optimiser merges equal initializers, whatever they mean.
                optimize=False,
                opset_version=opset,
                input_names=[name for group in names for name in group],
                output_names=[name for group in output_names for name in group],
                dynamic_shapes=(
                    tuple({0: n} for n, piece in zip(batches, pieces, strict=True) for _ in piece.inputs),
                ),
                verbose=False,
                custom_translation_table={torch.ops.aten.asinh.default: _asinh},
            )
    except Exception as err:
        raise ExportError(f"{where}: torch.onnx cannot export it: {err}") from err
    if program is None:
        raise ExportError(f"{where}: torch.onnx gave no program")
    model: ir.Model = program.model
    _simplify(model)
    return model


def _simplify(model: ir.Model) -> None:
    parameters = set(model.graph.initializers.values())

    def reads_no_parameter(node: ir.Node) -> bool | None:
        return False if any(value in parameters for value in node.inputs) else None

    optimizer.fold_constants(model, onnx_shape_inference=False, should_fold=reads_no_parameter)
    ir.passes.Sequential(
        passes.InlinePass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.IdentityEliminationPass(),
    )(model)
    for node in list(model.graph):
        _drop_invented_bias(node, parameters)
        _replace_flattening(node)
        _replace_spatial_mean(node)
    ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
        passes.ClearMetadataAndDocStringPass(),
    )(model)


def _sizes(value: ir.Value | None) -> list[int] | None:
    """The static sizes behind the batch axis, or None where they are not known."""
    if value is None or value.shape is None or len(value.shape) < 2:
        return None
    sizes = [size for size in value.shape[1:] if isinstance(size, int)]
    return sizes if len(sizes) == len(value.shape) - 1 else None


def _drop_invented_bias(node: ir.Node, parameters: set[ir.Value]) -> None:
    """The exporter gives a convolution without bias one of zeros, as long as its channels."""
    if node.op_type == "Conv" and len(node.inputs) > 2 and node.inputs[2] not in parameters:
        bias = node.inputs[2]
        if bias is not None and bias.const_value is not None and not bias.const_value.numpy().any():
            node.resize_inputs(2)


def _replace_flattening(node: ir.Node) -> None:
    """Say a ``Reshape`` that keeps or flattens the channels without naming their number."""
    if node.op_type != "Reshape":
        return
    before, after = _sizes(node.inputs[0]), _sizes(node.outputs[0])
    if before is None or after is None:
        return
    if len(after) == 1 and after[0] == math.prod(before):
        replace_node(node, ir.node("Flatten", [node.inputs[0]], {"axis": 1}))
    elif before[0] == after[0] and node.graph is not None:
        name = f"{node.outputs[0].name}_sizes"
        node.replace_input_with(1, add_constant(node.graph, name, [0, 0, *after[1:]]))
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _replace_spatial_mean(node: ir.Node) -> None:
    """ONNX Runtime pools blocked layouts in place; before ``ReduceMean`` it would convert them."""
    if node.op_type != "ReduceMean" or len(node.inputs) < 2 or len(_sizes(node.inputs[0]) or ()) != 3:
        return
    axes = None if node.inputs[1] is None else node.inputs[1].const_value
    if axes is None or sorted(int(axis) % 4 for axis in axes.numpy().flatten()) != [2, 3]:
        return
    pooled = ir.node("GlobalAveragePool", [node.inputs[0]])
    if node.attributes.get_int("keepdims", 1):
        replace_node(node, pooled)
    else:
        node.graph.insert_before(node, pooled)  # type: ignore[union-attr]
        replace_node(node, ir.node("Flatten", [pooled.outputs[0]], {"axis": 1}))


def add_constant(graph: ir.Graph, name: str, numbers: Sequence[int]) -> ir.Value:
    """Give a graph an int64 initializer ``[len(numbers)]``."""
    tensor = ir.tensor(np.asarray(numbers, np.int64), name=name)
    value = ir.Value(
        name=name, const_value=tensor, shape=ir.Shape([len(numbers)]), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    return value


def replace_node(node: ir.Node, new: ir.Node) -> None:
    """Let a node of one output take another's place; the value keeps its name."""
    old_value, new_value = node.outputs[0], new.outputs[0]
    new_value.name, new_value.type, new_value.shape = old_value.name, old_value.type, old_value.shape
    if node.graph is not None:
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], [new], [old_value], [new_value])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about packages we do not use off our users' terminals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
