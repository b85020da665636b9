"""Say the same in fewer ways: rewritings of a traced graph that leave what it computes as it is."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

__all__ = [
    "modules_from_functions",
    "replace_reshapes",
    "take_apart_early",
    "tensor_shape",
    "write_out_of_place",
]

_RESHAPES: tuple[Any, ...] = (
    torch.reshape, torch.flatten, torch.squeeze, torch.unsqueeze, torch.unflatten,
    "view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten",
)  # fmt: skip
_EXPANSIONS: tuple[Any, ...] = ("expand", "expand_as", "broadcast_to", torch.broadcast_to)
_CONV_SETTINGS = ("stride", "padding", "dilation", "groups")
#: Functions that subclasses of torch modules call, with the names of their arguments.
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    F.conv2d: ("input", "weight", "bias", *_CONV_SETTINGS),
    F.linear: ("input", "weight", "bias"),
}
_BROADCASTING: tuple[Any, ...] = (operator.add, operator.mul, torch.add, torch.mul, "add", "mul")


def tensor_shape(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of the tensor a node makes, batch first, or None where it makes no tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if isinstance(meta, TensorMetadata) else None


def modules_from_functions(root: nn.Module, graph: fx.Graph) -> None:
    """Where a subclass of a torch module calls the function itself, let the plain module do it.

    ``class Conv2dSame(nn.Conv2d)`` pads and calls ``F.conv2d(x, self.weight)``: traced, the
    function is left, and the weight by name. Put back, the module trains, folds and is cut
    like any other.
    """
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    for node in list(graph.nodes):
        names = _ARGUMENTS.get(node.target) if node.op == "call_function" else None
        if names is None:
            continue
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        path = _owner(given)
        if path is None or path in called:
            continue
        old = root.get_submodule(path)
        module = _plain_module(node.target, old, given)
        if module is None:
            continue
        called.add(path)
        for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            setattr(module, name, getattr(old, name))
        for name, child in old.named_children():
            module.add_module(name, child)  # an activation, say, that the graph calls by its path
        root.set_submodule(path, module.eval())
        with graph.inserting_before(node):
            call = graph.call_module(path, (given["input"],))
        node.replace_all_uses_with(call)
        graph.erase_node(node)


def _plain_module(function: Any, old: nn.Module, given: dict[str, Any]) -> nn.Module | None:
    """A module that does what ``function`` does with these arguments, its tensors yet to be set."""
    has_bias = given.get("bias") is not None
    if function is F.batch_norm and isinstance(old, nn.BatchNorm2d) and old.track_running_stats:
        if given.get("training", False) is not False or isinstance(given.get("eps"), fx.Node):
            return None
        return nn.BatchNorm2d(old.num_features, float(given.get("eps", 1e-5)), old.momentum, old.affine)
    if function is F.linear and isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, old.out_features, has_bias)
    if function is F.conv2d and isinstance(old, nn.Conv2d):
        settings = {name: given[name] for name in _CONV_SETTINGS if name in given}
        if not any(isinstance(value, fx.Node) for value in settings.values()):
            return nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, bias=has_bias, **settings)  # type: ignore[arg-type]
    return None


def _owner(given: dict[str, Any]) -> str | None:
    """The path of the module whose own parameters are given, whole and by their own names."""
    paths = set()
    for name in ("running_mean", "running_var", "weight", "bias"):
        source = given.get(name)
        if source is None:
            continue
        if not isinstance(source, fx.Node) or source.op != "get_attr":
            return None
        path, _, last = str(source.target).rpartition(".")
        if last != name:
            return None
        paths.add(path)
    return paths.pop() if len(paths) == 1 else None


def take_apart_early(graph: fx.Graph) -> None:
    """Take what ``split`` and the like return apart where it is made: a tuple cannot cross a cut."""
    for node in list(graph.nodes):
        if node.op == "output" or tensor_shape(node) is not None:
            continue
        for user in reversed(list(node.users)):
            if user.target is operator.getitem and len(user.all_input_nodes) == 1:
                node.append(user)


def write_out_of_place(traced: fx.GraphModule) -> None:
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
    if node.op != "call_function":
        return False
    function = str(getattr(node.target, "__name__", ""))
    if function.endswith("_") and not function.startswith("_"):
        replacement: Any = getattr(F, function[:-1], None) or getattr(torch, function[:-1], node.target)
        node.target = replacement
        return True
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    return False


def replace_reshapes(traced: fx.GraphModule) -> None:
    """Write reshapes that keep batch and channels apart, without naming N or C.

    ``[N, C, H, W]`` to ``[N, C*H*W]``, ``[N, C, H, W]`` to ``[N, C, H*W]`` and back, ``[N, C]``
    to ``[N, C, 1, 1]``, and a parameter ``[C]`` to ``[1, C, 1, 1]``. An ``expand`` that
    arithmetic would do anyway goes.
    """
    for node in list(traced.graph.nodes):
        if len(node.all_input_nodes) < 1 or node.op in ("get_attr", "output"):
            continue
        source = node.all_input_nodes[0]
        before, after = tensor_shape(source), tensor_shape(node)
        if before is None or after is None:
            continue
        new: fx.Node | None
        with traced.graph.inserting_before(node):
            if source.op == "get_attr" and _adds_axes(traced, node, before, after):
                sizes = tuple(-1 if size == before[0] else 1 for size in after)
                new = traced.graph.call_function(torch.reshape, (source, sizes))
            elif before[:1] != after[:1]:
                continue
            elif _is_reshape(traced, node):
                new = _reshaped(traced.graph, source, before, after)
            elif node.target in _EXPANSIONS and len(before) == len(after) and _is_broadcast(node, after):
                new = source
            else:
                continue
        if new is not None:
            new.meta.setdefault("tensor_meta", node.meta["tensor_meta"])  # the next may reshape it again
            node.replace_all_uses_with(new)
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.graph.lint()


def _is_reshape(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target))) in (nn.Flatten, nn.Unflatten)
    if node.target is operator.getitem:  # x[:, :, None, None]
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        return all(part is None or part is Ellipsis or part == slice(None) for part in index)
    return node.target in _RESHAPES


def _adds_axes(
    traced: fx.GraphModule, node: fx.Node, before: tuple[int, ...], after: tuple[int, ...]
) -> bool:
    """Whether a vector gets axes of size 1 and nothing else."""
    if len(before) != 1 or before[0] < 2 or sorted(after) != [1] * (len(after) - 1) + [before[0]]:
        return False
    return _is_reshape(traced, node)


def _reshaped(graph: fx.Graph, x: fx.Node, before: tuple[int, ...], after: tuple[int, ...]) -> fx.Node | None:
    if before == after:
        return x
    if len(after) == 2 and len(before) > 2:
        return graph.call_function(torch.flatten, (x, 1))
    if before[:2] != after[:2]:
        return None
    if len(before) == 2 and math.prod(after[2:]) == 1:
        for _ in after[2:]:
            x = graph.call_function(torch.unsqueeze, (x, -1))
        return x
    if len(before) > 3 and len(after) == 3:
        return graph.call_function(torch.flatten, (x, 2))
    if len(before) == 3 and len(after) > 3:
        return graph.call_function(torch.unflatten, (x, 2, after[2:]))
    return None


def _is_broadcast(node: fx.Node, after: tuple[int, ...]) -> bool:
    """Whether every user combines the expanded tensor with one of that size."""
    for user in node.users:
        others = [tensor_shape(source) for source in user.all_input_nodes if source is not node]
        if user.target not in _BROADCASTING or after not in others:
            return False
    return True
