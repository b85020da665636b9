"""Graphs of one node, run by ONNX Runtime and by torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from plain_session import plain_session
from rnp_deploy.engines.torch_graph import TorchGraph, Weights

__all__ = ["assert_same", "both", "compared", "one_node", "torch_graph", "torch_outputs"]

Array = NDArray[Any]

#: Operations that :func:`assert_same` found to be the same, in this process so far.
compared: set[str] = set()


def one_node(
    kind: str,
    inputs: Sequence[Array | None],
    outputs: int = 1,
    *,
    constant: Collection[int] = (),
    opset: int = 20,
    **attributes: Any,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A graph of a node, and its feeds; inputs at ``constant`` positions are initializers, None is left out."""
    names = ["" if array is None else f"i{i}" for i, array in enumerate(inputs)]
    infos, feeds, initializers = [], {}, []
    for i, given in enumerate(inputs):
        if given is None:
            continue
        array = np.asarray(given)
        if i in constant:
            initializers.append(numpy_helper.from_array(array, names[i]))
        else:
            infos.append(helper.make_tensor_value_info(names[i], helper.np_dtype_to_tensor_dtype(array.dtype),
                                                       [None] * array.ndim))  # fmt: skip
            feeds[names[i]] = array
    node = helper.make_node(kind, names, [f"o{i}" for i in range(outputs)], name=f"the {kind}", **attributes)
    graph = helper.make_graph([node], "g", infos, [], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {info.name: info.type.tensor_type.elem_type for info in inferred.graph.value_info}
    for name in node.output:  # ranks are left to the runtimes
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
        model.graph.output[-1].type.tensor_type.elem_type = types.get(name, 1)
    return model, feeds


def torch_graph(model: onnx.ModelProto, device: str = "cpu", folder: str = "nowhere") -> TorchGraph:
    """As the engine makes it; without weights outside of the graph."""
    chosen = torch.device(device)
    return TorchGraph(model.SerializeToString(), Weights(Path(folder), chosen), chosen, "stages/07/full.onnx")


def torch_outputs(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    """Run by torch."""
    graph = torch_graph(model)
    with torch.inference_mode():
        return [made.numpy() for made in graph([torch.from_numpy(feeds[edge.name]) for edge in graph.inputs])]


def both(*arguments: Any, **named: Any) -> tuple[list[Array], list[Array]]:
    """What torch and ONNX Runtime make of :func:`one_node`."""
    model, feeds = one_node(*arguments, **named)
    session = plain_session(model.SerializeToString())
    return torch_outputs(model, feeds), session.run(None, feeds)


def assert_same(*arguments: Any, tolerance: float = 1e-5, **named: Any) -> None:
    """Torch makes what ONNX Runtime makes: types and shapes too."""
    made, wanted = both(*arguments, **named)
    assert made, "nothing was compared"
    for got, expected in zip(made, wanted, strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    compared.add(arguments[0])
