"""What joining a bundle's graphs into one takes: values of their own names, and nothing unused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rnp_deploy.errors import MissingRuntimeError

__all__ = ["needed_nodes", "onnx_module", "rename_values"]


def onnx_module() -> Any:
    """The onnx package.

    Raises:
        MissingRuntimeError: It is not installed.
    """
    try:
        import onnx
    except ImportError as err:
        raise MissingRuntimeError("joining graphs needs onnx; pip install 'rnp-deploy[bench]'") from err
    return onnx


def rename_values(graph: Any, prefix: str, names: Mapping[str, str]) -> None:
    """Rename a GraphProto's nodes, values and initializers in place, so that graphs can lie side by side.

    Args:
        graph: A GraphProto without subgraphs.
        prefix: Put before every name, with a slash.
        names: What values on the graph's edge are called instead.
    """

    def renamed(name: str) -> str:
        return names.get(name, f"{prefix}/{name}") if name else name

    for node in graph.node:
        node.name = f"{prefix}/{node.name}"
        for values in (node.input, node.output):
            values[:] = [renamed(name) for name in values]
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)


def needed_nodes(nodes: Iterable[Any], outputs: Iterable[str]) -> list[Any]:
    """Of nodes in order, those that the outputs depend on."""
    wanted, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
