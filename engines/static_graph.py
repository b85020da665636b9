"""One fixed path of a bundle as a single ONNX graph: what a user would deploy instead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnp_deploy.bundle.reading import Bundle
from rnp_deploy.engines.graph_joining import needed_nodes, onnx_module, rename_values
from rnp_deploy.errors import InputError

__all__ = ["static_graph"]


def static_graph(bundle: Bundle, options: Sequence[int]) -> bytes:
    """Join the branches of one path, without the agent.

    With option k everywhere this is the dense network.

    Args:
        bundle: Verified.
        options: One per decision, 1..k.

    Returns:
        A serialised ModelProto; its weights stay in the bundle's ``weights.bin``.

    Raises:
        InputError: ``options`` do not name a path.
        MissingRuntimeError: onnx is not installed.
    """
    onnx = onnx_module()
    manifest = bundle.manifest
    most = manifest.option_counts
    if len(options) != len(most) or not all(o in range(1, k + 1) for o, k in zip(options, most, strict=True)):
        raise InputError(
            f"options {list(options)} do not name a path; pass {len(most)} integers from 1 to {list(most)}"
        )
    nodes: list[Any] = []
    initializers: list[Any] = []
    for s, stage in enumerate(manifest.stages):
        model = onnx.ModelProto.FromString(bundle.graph(manifest.branch(s, options).file))
        edges = {tensor.name for tensor in (*stage.inputs, *stage.outputs)}
        rename_values(model.graph, f"stage{s}", {name: name for name in edges})
        nodes += model.graph.node
        initializers += model.graph.initializer
    output = manifest.outputs[0]
    kept = needed_nodes(nodes, [output.name])  # what only the agent would read is left out
    used = {name for node in kept for name in node.input}
    graph = onnx.helper.make_graph(
        kept,
        "static",
        [_info(onnx, manifest.inputs[0])],
        [_info(onnx, output)],
        [tensor for tensor in initializers if tensor.name in used],
    )
    joined = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return bytes(joined.SerializeToString())


def _info(onnx: Any, tensor: Any) -> Any:
    return onnx.helper.make_tensor_value_info(tensor.name, onnx.TensorProto.FLOAT, ["N", *tensor.shape])
