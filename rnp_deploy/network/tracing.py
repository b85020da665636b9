"""From a torch backbone to a flat graph with shapes, that later steps analyse and cut."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils.flop_counter import FlopCounterMode

from rnp_deploy.errors import InputError, TracingError
from rnp_deploy.network.graph_rewriting import (
    modules_from_functions,
    replace_reshapes,
    take_apart_early,
    write_out_of_place,
)
from rnp_deploy.network.shaped_tracer import ShapedTracer

__all__ = ["Trace", "same_outputs", "trace_backbone"]

_TOLERANCE = 1e-4
_BATCH = 2


@dataclass(frozen=True)
class Trace:
    """A backbone as one flat graph.

    Attributes:
        graph_module: Each tensor node's ``meta["tensor_meta"].shape`` is its shape, and
            ``meta["macs"]`` the multiply-accumulates of its convolutions and matrix products
            for one image.
        opaque: Path of each module torch.fx could not trace and calls as it is → why.
        images: A batch of noise.
        outputs: What the graph makes of it.
    """

    graph_module: fx.GraphModule
    opaque: Mapping[str, str]
    images: Tensor
    outputs: Tensor


def trace_backbone(backbone: nn.Module, example_input: Tensor) -> Trace:
    """Trace a copy of ``backbone`` into one graph whose tensors know their shapes.

    The copy is in eval mode and its in-place activations are made out of place, since a
    stage may keep a tensor that a later stage would overwrite. Reshapes that keep batch
    and channels apart name neither. A module that cannot be traced is kept as one call.

    ``F.dropout(x, training=self.training)`` is traced as no dropout; ``nn.Dropout`` still
    follows ``train()`` and ``eval()``.

    Args:
        backbone: The network; left untouched.
        example_input: ``[N, C, H, W]``, floating point. Only its shape and dtype matter.

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
    # An example of zeros would hide what depends on channels or other samples.
    images = torch.randn(_BATCH, *example_input.shape[1:], generator=torch.Generator().manual_seed(0))
    images = images.to(example_input)
    expected = _forward(original, images, "the backbone cannot run on the example input")
    traced, opaque = _symbolic_trace(original, images)
    write_out_of_place(traced)
    traced.graph.eliminate_dead_code()  # not before: an overwritten tensor is dead only now
    with torch.no_grad():
        ShapeProp(traced).propagate(images)
    replace_reshapes(traced)
    take_apart_early(traced.graph)
    traced.recompile()
    _MeasuringRun(traced).propagate(images)
    return Trace(traced, opaque, images, _checked_outputs(traced, images, expected))


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


def _symbolic_trace(original: nn.Module, images: Tensor) -> tuple[fx.GraphModule, dict[str, str]]:
    tracer = ShapedTracer(images)
    try:
        graph = tracer.trace(original)
    except Exception as err:
        raise TracingError(
            f"torch.fx cannot trace {type(original).__name__}: {err}; data-dependent control flow "
            "has to be moved out of its forward() into a module of its own, which then stays whole"
        ) from err
    placeholders = [node for node in graph.nodes if node.op == "placeholder" and node.users]
    if len(placeholders) != 1:
        raise TracingError(
            f"{type(original).__name__} takes {len(placeholders)} inputs; one image tensor is supported"
        )
    for node in list(graph.nodes):
        if node.target is torch._assert or (node.op == "placeholder" and not node.users):
            graph.erase_node(node)
    modules_from_functions(original, graph)
    return fx.GraphModule(original, graph), tracer.opaque


class _MeasuringRun(ShapeProp):
    """Notes the shape of every tensor, and what every node multiplies for one image."""

    def propagate(self, *args: Any) -> Any:
        with FlopCounterMode(display=False) as self._counter, torch.no_grad():
            return super().propagate(*args)

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.get_total_flops()
        result = super().run_node(n)
        n.meta["macs"] = (self._counter.get_total_flops() - before) // (2 * _BATCH)
        return result


def _checked_outputs(traced: fx.GraphModule, images: Tensor, expected: Tensor) -> Tensor:
    outputs = _forward(traced, images, "the traced backbone cannot run")
    alone = _forward(traced, images[:1], "the traced backbone cannot run on a single image")
    for got, wanted in ((outputs, expected), (alone, expected[:1])):
        if not same_outputs(got, wanted):
            raise TracingError(
                "the traced backbone gives other outputs than the backbone; a forward() that depends "
                "on the batch size, on randomness (F.dropout needs training=self.training) or on other "
                "samples, or that writes into a view, cannot be pruned per sample"
            )
    return outputs
