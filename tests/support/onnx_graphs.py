"""Hand-made ONNX graphs of a few nodes, and tensors in ONNX Runtime's blocked layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from plain_session import plain_session

__all__ = ["GraphWriter", "blocked_layout", "plain_layout", "run_plain"]

Array = NDArray[Any]


class GraphWriter:
    """Writes a graph line by line; weights are random, of the seed."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Array] = {}

    def add(self, kind: str, inputs: str, output: str, **attributes: Any) -> str:
        """A node of any kind; ``inputs`` are names with blanks between."""
        name = f"{kind} of {output}"
        self.nodes.append(helper.make_node(kind, inputs.split(), [output], name=name, **attributes))
        return output

    def conv(self, x: str, y: str, sizes: tuple[int, int], kernel: int = 3, group: int = 1) -> str:
        """A convolution with bias that keeps the image's size; ``sizes`` are its input and output channels."""
        self.weights[f"{y}.w"] = self._weights(sizes[1], sizes[0] // group, kernel, kernel)
        self.weights[f"{y}.b"] = self._weights(sizes[1])
        pads = [kernel // 2] * 4
        return self.add("Conv", f"{x} {y}.w {y}.b", y, kernel_shape=[kernel] * 2, pads=pads, group=group)

    def model(
        self, inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]]
    ) -> onnx.ModelProto:
        """The graph of all lines so far; shapes are without N."""
        ends = [[helper.make_tensor_value_info(name, 1, ["N", *shape]) for name, shape in end.items()]
                for end in (inputs, outputs)]  # fmt: skip
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "g", *ends, weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def _weights(self, *shape: int) -> Array:
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        return (scale * self._random.standard_normal(shape)).astype(np.float32)


def run_plain(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """One ordinary session of the whole graph."""
    session = plain_session(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def blocked_layout(plain: Array, block: int, padding: float = 0.0) -> Array:
    """``[N, C, H, W]`` → the same in blocks, C rounded up: the added channels hold ``padding``."""
    n, c, h, w = plain.shape
    padded = np.pad(plain, ((0, 0), (0, -c % block), (0, 0), (0, 0)), constant_values=padding)
    blocks = padded.reshape(n, -1, block, h, w).transpose(0, 1, 3, 4, 2)
    return np.ascontiguousarray(blocks).reshape(padded.shape)


def plain_layout(blocked: Array, block: int, channels: int) -> Array:
    """The inverse of :func:`blocked_layout`."""
    n, c, h, w = blocked.shape
    return (
        blocked.reshape(n, c // block, h, w, block).transpose(0, 1, 4, 2, 3).reshape(n, c, h, w)[:, :channels]
    )
