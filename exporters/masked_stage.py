"""A stage at full width that masks what a branch lacks: the same graph, in the same precision, as it is cut from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rnp_deploy.engine import Arrays, Engine
from rnp_deploy.exporters.precision import verifying_opener
from rnp_deploy.exporters.stage_graph import ZEROS_FOLLOW, replace_node

__all__ = ["MaskedStage", "Reference", "masked_stage"]

#: A stage's inputs, and options ``[N]`` of the decisions it depends on → its outputs at full width.
Reference: TypeAlias = Callable[[Arrays, Mapping[int, NDArray[np.int64]]], Arrays]


class _Mask(NamedTuple):
    """An input ``[N, ..., C, ...]`` bool of the graph: ``sizes[option-1]`` channels on ``axis`` are kept."""

    name: str
    decision: int
    axis: int
    rank: int
    sizes: tuple[int, ...]

    def at(self, options: NDArray[np.int64]) -> NDArray[np.bool_]:
        kept = np.asarray(self.sizes)[options - 1]
        mask = np.arange(self.sizes[-1]) < kept[:, None]
        shape = [1] * self.rank
        shape[0], shape[self.axis] = mask.shape
        return mask.reshape(shape)


class _OneGraph(NamedTuple):
    """A source of engines: one graph, and the folder of its weights."""

    path: Path
    data: bytes

    def graph(self, path: str) -> bytes:
        return self.data

    def check_unchanged(self) -> None:
        """It is being written by us."""


class MaskedStage:
    """An engine of such a graph; call it as a :data:`Reference`.

    Args:
        engine: Of the graph that :func:`masked_stage` made.
        masks: That came with it.
    """

    def __init__(self, engine: Engine, masks: tuple[_Mask, ...]) -> None:
        self._engine, self._masks = engine, masks

    @classmethod
    def open(
        cls, model: ir.Model, folder: Path, where: str, precision: str, also: tuple[str, ...] = ()
    ) -> MaskedStage:
        """Open it; its weights lie in it, or in ``folder``."""
        masked, masks = masked_stage(model, also)
        source = _OneGraph(folder, ir.to_proto(masked).SerializeToString())
        return cls(verifying_opener(source, precision)(where), masks)

    def __call__(self, inputs: Arrays, options: Mapping[int, NDArray[np.int64]]) -> Arrays:
        """See :data:`Reference`."""
        masks = {mask.name: mask.at(options[mask.decision]) for mask in self._masks}
        return self._engine.run({**inputs, **masks})


def masked_stage(model: ir.Model, also: tuple[str, ...] = ()) -> tuple[ir.Model, tuple[_Mask, ...]]:
    """Put masks where a stage's graph has marks.

    Args:
        model: At full width, with marks; left as it is.
        also: Values that are to be outputs too.

    Returns:
        The graph, and the masks it takes as inputs beside the stage's own.
    """
    masked = model.clone()
    graph = masked.graph
    masks: list[_Mask] = []
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.extend(values[name] for name in also if not values[name].is_graph_output())
    for node in list(graph):
        if (node.domain, node.op_type) != ZEROS_FOLLOW:
            continue
        number = {name: node.attributes[name].as_int() for name in ("decision", "axis", "rank")}
        sizes = tuple(node.attributes["sizes"].as_ints())
        mask = _Mask(name=f"mask/{len(masks)}", **number, sizes=sizes)
        x = node.inputs[0]
        dtype = ir.DataType.FLOAT if x is None or x.dtype is None else x.dtype
        keep = ir.Value(
            name=mask.name, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([None] * mask.rank)
        )
        zero = ir.Value(name=f"{mask.name}/zero", type=ir.TensorType(dtype), shape=ir.Shape([]))
        zero.const_value = ir.Tensor(np.zeros((), dtype.numpy()), dtype=dtype, name=zero.name)
        graph.inputs.append(keep)
        graph.register_initializer(zero)
        replace_node(node, ir.node("Where", [keep, x, zero]))
        masks.append(mask)
    masked.opset_imports.pop(ZEROS_FOLLOW[0], None)
    return masked, tuple(masks)
