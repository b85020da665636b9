"""From a torch backbone to a flat graph with shapes, that later steps analyse and cut."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from rnp_deploy.errors import InputError, TracingError

__all__ = ["noise_like", "same_outputs", "tensor_shape", "trace_backbone"]

_RESHAPES: tuple[Any, ...] = (torch.reshape, torch.flatten, "view", "reshape", "flatten")
_TOLERANCE = 1e-4


def trace_backbone(backbone: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """Trace a copy of ``backbone`` into one graph whose tensors know their shapes.

    The copy is in eval mode and its in-place activations are made out of place, since a
    stage may keep a tensor that a later stage would overwrite. Whatever merely flattens
    ``[N, C, H, W]`` to ``[N, C*H*W]`` becomes ``torch.flatten(x, 1)``, so that no batch
    size or channel count is written into the graph.

    ``F.dropout(x, training=self.training)`` is traced as no dropout; ``nn.Dropout`` still
    follows ``train()`` and ``eval()``.

    Args:
        backbone: The network; left untouched.
        example_input: ``[N, C, H, W]``, floating point. Only its shape and dtype matter.

    Returns:
        A graph module; each tensor node's ``meta["tensor_meta"].shape`` is its shape.

    Raises:
        InputError: ``example_input`` is not a floating ``[N, C, H, W]`` tensor.
        TracingError: torch.fx cannot follow the backbone, it has not exactly one input and
            one output tensor ``[N, ...]``, or the trace does not repeat what the backbone does.
    """
    if example_input.ndim != 4 or not example_input.is_floating_point():
        raise InputError(
            f"example_input has shape {tuple(example_input.shape)} and dtype {example_input.dtype}; "
            "pass one floating-point tensor [N, C, H, W]"
        )
    if example_input.shape[0] < 1:
        raise InputError("example_input is an empty batch; pass at least one image")
    try:
        original = copy.deepcopy(backbone).eval()
    except RuntimeError as err:
        raise TracingError(
            f"{type(backbone).__name__} cannot be copied: {err}; remove pruning and weight "
            "reparametrisations first (torch.nn.utils.prune.remove, remove_weight_norm)"
        ) from err
    images = noise_like(example_input)
    expected = _forward(original, images, "the backbone cannot run on the example input")
    traced = _symbolic_trace(original)
    _write_out_of_place(traced)
    with torch.no_grad():
        ShapeProp(traced).propagate(images)
    _replace_flattening(traced)
    _fold_static_sizes(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    with torch.no_grad():
        ShapeProp(traced).propagate(images)
    _check_trace(traced, images, expected)
    return traced


def noise_like(example_input: Tensor) -> Tensor:
    """Two random images: an example of zeros would hide what depends on channels or other samples."""
    noise = torch.randn(2, *example_input.shape[1:], generator=torch.Generator().manual_seed(0))
    return noise.to(example_input)


def tensor_shape(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of the tensor a node makes, batch first, or None where it makes no tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if isinstance(meta, TensorMetadata) else None


def same_outputs(got: Tensor, expected: Tensor) -> bool:
    """Whether two outputs agree to float rounding."""
    scale = float(expected.abs().max()) or 1.0
    return got.shape == expected.shape and torch.allclose(
        got, expected, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True
    )


def _forward(module: Callable[[Tensor], Any], images: Tensor, complaint: str) -> Tensor:
    try:
        with torch.no_grad():
            outputs = module(images)
    except Exception as err:
        raise TracingError(
            f"{complaint} (shape {tuple(images.shape)}): {err}; it must take any batch size"
        ) from err
    if not isinstance(outputs, Tensor):
        raise TracingError(
            f"the backbone returns {type(outputs).__name__}; wrap it so that it returns one tensor [N, ...]"
        )
    if outputs.ndim < 1 or outputs.shape[0] != images.shape[0]:
        raise TracingError(
            f"the backbone turns a batch of {images.shape[0]} into shape {tuple(outputs.shape)}; "
            "the output must keep the batch as its first axis"
        )
    return outputs


def _symbolic_trace(original: nn.Module) -> fx.GraphModule:
    try:
        traced = fx.symbolic_trace(original)
    except Exception as err:
        raise TracingError(
            f"torch.fx cannot trace {type(original).__name__}: {err}; data-dependent control flow "
            "has to be moved out of forward() or into a module marked as a leaf"
        ) from err
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder" and node.users]
    if len(placeholders) != 1:
        raise TracingError(
            f"{type(original).__name__} takes {len(placeholders)} inputs; one image tensor is supported"
        )
    for node in list(traced.graph.nodes):
        if node.op == "placeholder" and not node.users:
            traced.graph.erase_node(node)
    return traced


def _write_out_of_place(traced: fx.GraphModule) -> None:
    """Let every operation make a tensor of its own, and let what came after read that."""
    nodes = list(traced.graph.nodes)
    for position, node in enumerate(nodes):
        if not _becomes_out_of_place(traced, node):
            continue
        source = node.all_input_nodes[0]
        for user in nodes[position + 1 :]:
            if source in user.all_input_nodes:
                user.replace_input_with(source, node)
    for module in traced.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    traced.recompile()


def _becomes_out_of_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Rewrite a node that overwrites its first input; tell whether it was one."""
    name = str(node.target)
    if node.op == "call_module":
        return getattr(traced.get_submodule(name), "inplace", False) is True
    if node.op == "call_method" and name.endswith("_") and callable(getattr(Tensor, name[:-1], None)):
        node.target = name[:-1]
        return True
    function = str(getattr(node.target, "__name__", ""))
    if node.op == "call_function" and function.endswith("_") and not function.startswith("_"):
        replacement: Any = getattr(F, function[:-1], None) or getattr(torch, function[:-1], node.target)
        node.target = replacement
        return True
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    return False


def _replace_flattening(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if node.target not in _RESHAPES or not node.all_input_nodes:
            continue
        source = node.all_input_nodes[0]
        before, after = tensor_shape(source), tensor_shape(node)
        if before is None or after is None or len(after) != 2 or before[0] != after[0]:
            continue
        with traced.graph.inserting_before(node):
            flat = traced.graph.call_function(torch.flatten, (source, 1))
        node.replace_all_uses_with(flat)
        traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.graph.lint()


def _fold_static_sizes(traced: fx.GraphModule) -> None:
    """Write every size but the batch's into the graph: channels, H and W do not change."""
    for node in list(traced.graph.nodes):
        size = _static_size(node)
        if size is not None:
            node.replace_all_uses_with(size)
            traced.graph.erase_node(node)


def _static_size(node: fx.Node) -> Any:
    if node.target == "size" and len(node.args) == 2 and isinstance(node.args[0], fx.Node):
        shape, index = tensor_shape(node.args[0]), node.args[1]
    elif node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        sizes = node.args[0]
        is_shape = sizes.target == "size" or (sizes.target is getattr and sizes.args[1] == "shape")
        shape = tensor_shape(sizes.args[0]) if is_shape and isinstance(sizes.args[0], fx.Node) else None
        index = node.args[1]
    else:
        plain = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
        if plain and all(isinstance(arg, int) for arg in node.args):
            return node.target(*node.args)  # type: ignore[operator]
        return None
    if shape is None or not isinstance(index, (int, slice)):
        return None
    if isinstance(index, slice):
        names_batch = 0 in range(*index.indices(len(shape)))
    else:
        names_batch = index % len(shape) == 0
    return None if names_batch else shape[index]


def _check_trace(traced: fx.GraphModule, images: Tensor, expected: Tensor) -> None:
    fewer = images[:1]
    outputs = _forward(traced, images, "the traced backbone cannot run")
    alone = _forward(traced, fewer, "the traced backbone cannot run on a single image")
    for got, wanted in ((outputs, expected), (alone, expected[:1])):
        if not same_outputs(got, wanted):
            raise TracingError(
                "the traced backbone gives other outputs than the backbone; a forward() that depends "
                "on the batch size, on randomness (F.dropout needs training=self.training) or on other "
                "samples, or that writes into a view, cannot be pruned per sample"
            )
