"""One torch module → one ONNX graph that can be cut: parameters by name, no channel constants."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from onnxscript import optimizer
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rnp_deploy.errors import ExportError
from rnp_deploy.network.agent import AgentStep
from rnp_deploy.network.stages import Stage, mask_channels

__all__ = ["agent_step_graph", "stage_graph"]

OPSET = 20
_BATCH = 2  # torch.export would take a batch of 1 for a constant


def stage_graph(stage: Stage) -> ir.Model:
    """Export a stage at full width, its masks taken out and its batch norms folded.

    Initializers keep the parameters' names in the backbone. Nothing in the graph repeats
    a channel count, but for initializers and the ``group`` of depthwise convolutions.

    Raises:
        ExportError: torch.onnx cannot export the stage.
    """
    module = _unmasked(stage)
    example = next(iter(stage.module.parameters()), torch.zeros(()))
    inputs = [torch.zeros(_BATCH, *tensor.shape, dtype=example.dtype) for tensor in stage.inputs]
    return _onnx_from_torch(
        module,
        inputs,
        [tensor.name for tensor in stage.inputs],
        [tensor.name for tensor in stage.outputs],
        f"stage {stage.index}",
    )


def agent_step_graph(step: AgentStep, feature_channels: int, state_size: int, where: str) -> ir.Model:
    """Export an agent step: features, state, penalty → q_values, option, next_state.

    Raises:
        ExportError: torch.onnx cannot export it.
    """
    inputs = [torch.zeros(_BATCH, feature_channels), torch.zeros(_BATCH, state_size), torch.zeros(_BATCH)]
    names = ["features", "state", "penalty"]
    return _onnx_from_torch(step, inputs, names, ["q_values", "option", "next_state"], where)


def _unmasked(stage: Stage) -> fx.GraphModule:
    """The stage without masks: a branch physically lacks what they would set to zero."""
    module = fx.GraphModule(stage.module, copy.deepcopy(stage.module.graph))
    for node in list(module.graph.nodes):
        if node.target is mask_channels:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    for node in list(module.graph.nodes):
        if node.op == "placeholder" and not node.users and node.name.startswith("option_"):
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


def _onnx_from_torch(
    module: nn.Module, inputs: Sequence[Tensor], names: list[str], output_names: list[str], where: str
) -> ir.Model:
    batch = torch.export.Dim("N", min=1, max=2**20)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                tuple(inputs),
                dynamo=True,
                # The exporter's own optimiser merges equal initializers, whatever they mean.
                optimize=False,
                opset_version=OPSET,
                input_names=names,
                output_names=output_names,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                verbose=False,
            )
    except Exception as err:
        raise ExportError(f"{where}: torch.onnx cannot export it: {err}") from err
    if program is None:
        raise ExportError(f"{where}: torch.onnx gave no program")
    model: ir.Model = program.model
    _simplify(model)
    given = [value.name for value in model.graph.inputs], [value.name for value in model.graph.outputs]
    if given != (names, output_names):
        raise ExportError(f"{where}: torch.onnx named its inputs and outputs {given}")
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


def _replace_flattening(node: ir.Node) -> None:
    """``Reshape`` to ``[-1, C*H*W]`` holds a channel count; ``Flatten`` does the same without."""
    if node.op_type != "Reshape":
        return
    before, after = _sizes(node.inputs[0]), _sizes(node.outputs[0])
    if before is not None and after is not None and len(after) == 1 and after[0] == math.prod(before):
        _replace(node, ir.node("Flatten", [node.inputs[0]], {"axis": 1}))


def _replace_spatial_mean(node: ir.Node) -> None:
    """ONNX Runtime pools blocked layouts in place; before ``ReduceMean`` it would convert them."""
    if node.op_type != "ReduceMean" or len(node.inputs) < 2 or len(_sizes(node.inputs[0]) or ()) != 3:
        return
    axes = None if node.inputs[1] is None else node.inputs[1].const_value
    if axes is None or sorted(int(axis) % 4 for axis in axes.numpy().flatten()) != [2, 3]:
        return
    pooled = ir.node("GlobalAveragePool", [node.inputs[0]])
    if node.attributes.get_int("keepdims", 1):
        _replace(node, pooled)
    else:
        node.graph.insert_before(node, pooled)  # type: ignore[union-attr]
        _replace(node, ir.node("Flatten", [pooled.outputs[0]], {"axis": 1}))


def _replace(node: ir.Node, new: ir.Node) -> None:
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
