"""ONNX's layers as torch functions: convolutions, pooling, matrix products, norms, quantisation.

Each ``node → function``; what torch has not in the same meaning raises NotImplementedError.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "TORCH_DTYPES",
    "Function",
    "Node",
    "make_batch_norm",
    "make_conv",
    "make_dequantize",
    "make_gemm",
    "make_group_norm",
    "make_instance_norm",
    "make_layer_norm",
    "make_pool",
    "make_quantize",
]

#: Reads the inputs of a node, None for one that is left out; gives its output, or a tuple of several.
Function = Callable[..., Any]

#: ONNX's number of an element type → torch's.
TORCH_DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.UINT16: torch.uint16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}


class Node(NamedTuple):
    """What a function is made of.

    Attributes:
        attributes: Name → value, those that are not given with ONNX's default; tensors are torch's.
        outputs: How many the node has.
        opset: Of the graph.
        device: Where it makes tensors that it reads no tensor for.
    """

    attributes: Mapping[str, Any]
    outputs: int
    opset: int
    device: torch.device


# Windows: convolutions and pooling.


class _Axis(NamedTuple):
    """Windows along one axis; sizes in elements."""

    size: int
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int

    def filled(self, *, ceil: bool) -> int:
        """The size, with padding, that the windows fill without a rest.

        Where their number is rounded up, none begins in the padding behind.
        """
        reach = self.dilation * (self.kernel - 1) + 1
        room = self.size + self.before + self.after - reach
        steps = -(-room // self.stride) if ceil else room // self.stride
        if ceil and steps * self.stride >= self.size + self.before:
            steps -= 1
        return steps * self.stride + reach


class _Windows:
    """The windows of a node.

    Args:
        attributes: Of a convolution or pooling.

    Raises:
        NotImplementedError: The padding is not given.
    """

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self._attributes = attributes
        if attributes["auto_pad"] != "NOTSET":
            raise NotImplementedError("its auto_pad is not NOTSET")  # torch's exporter writes pads
        self._known: dict[tuple[torch.Size, torch.Size], list[_Axis]] = {}

    def of(self, sizes: torch.Size, kernel: torch.Size) -> list[_Axis]:
        """Of an image of some size, axis by axis; kept, since the same ones come again and again."""
        axes = self._known.get((sizes, kernel))
        if axes is None:
            n = len(sizes)
            strides, dilations = (self._attributes.get(name) or [1] * n for name in ("strides", "dilations"))
            pads = self._attributes.get("pads") or [0] * 2 * n
            axes = [
                _Axis(*each)
                for each in zip(sizes, kernel, strides, dilations, pads[:n], pads[n:], strict=True)
            ]
            self._known[sizes, kernel] = axes
        return axes


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the last axes; torch wants the last one first."""
    return F.pad(x, [amount for pair in reversed(pads) for amount in pair], value=value)


def _average_pool3d(x: Tensor, *given: Any) -> Tensor:
    """Torch's own has no float16 and bfloat16 on the CPU."""
    return F.avg_pool3d(x.float() if x.element_size() == 2 else x, *given).to(x.dtype)


_CONVOLUTIONS: Mapping[int, Function] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOLS: Mapping[int, Function] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: Mapping[int, Function] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: _average_pool3d}


def make_conv(node: Node) -> Function:
    """Conv in 1 to 3 axes; padding that differs before and behind is put there first."""
    windows, groups = _Windows(node.attributes), node.attributes["group"]

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        axes = windows.of(x.shape[2:], weight.shape[2:])
        padding = [axis.before for axis in axes]
        if padding != [axis.after for axis in axes]:
            x, padding = _padded(x, [(axis.before, axis.after) for axis in axes]), [0] * len(axes)
        strides, dilations = [axis.stride for axis in axes], [axis.dilation for axis in axes]
        made: Tensor = _CONVOLUTIONS[len(axes)](x, weight, bias, strides, padding, dilations, groups)
        return made

    return conv


def make_pool(node: Node, *, average: bool) -> Function:
    """Max or average pooling; padding that torch's own does not know is put there first."""
    attributes = node.attributes
    windows, kernel = _Windows(attributes), torch.Size(attributes["kernel_shape"])
    ceil, count_pads = bool(attributes["ceil_mode"]), bool(attributes.get("count_include_pad", 0))
    if average and any(dilation != 1 for dilation in attributes.get("dilations") or ()):
        raise NotImplementedError("its dilations are not 1")

    def pool(x: Tensor) -> Tensor:
        axes = windows.of(x.shape[2:], kernel)
        n, strides = len(axes), [axis.stride for axis in axes]
        known = all(axis.before == axis.after and 2 * axis.before <= axis.kernel for axis in axes)
        padding = [axis.before if known else 0 for axis in axes]
        ends = [axis.filled(ceil=ceil) for axis in axes]
        made: Tensor
        if not known:
            pads = [(a.before, end - a.size - a.before) for a, end in zip(axes, ends, strict=True)]
        if not average:
            x = x if known else _padded(x, pads, -math.inf)
            made = _MAX_POOLS[n](
                x, kernel, strides, padding, [axis.dilation for axis in axes], ceil and known
            )
        elif known:
            made = _AVERAGE_POOLS[n](x, kernel, strides, padding, ceil, count_pads)
        else:
            counted = x.new_ones(1, 1, *x.shape[2:])
            if count_pads:
                counted = _padded(counted, [(a.before, a.after) for a in axes], 1.0)
                rest = [(0, end - size) for end, size in zip(ends, counted.shape[2:], strict=True)]
            share = _AVERAGE_POOLS[n](_padded(counted, rest if count_pads else pads), kernel, strides)
            made = _AVERAGE_POOLS[n](_padded(x, pads), kernel, strides) / share
        return made

    return pool


# Products and norms.


def make_gemm(node: Node) -> Function:
    """Gemm: alpha·A·B + beta·C, A and B as they are or turned."""
    alpha, beta, turn_a, turn_b = (node.attributes[name] for name in ("alpha", "beta", "transA", "transB"))

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.T if turn_a else a, b.T if turn_b else b
        if c is None:
            return alpha * (a @ b) if alpha != 1 else a @ b
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return gemm


def make_batch_norm(node: Node) -> Function:
    """BatchNormalization as at inference."""
    epsilon = node.attributes["epsilon"]
    if node.attributes.get("training_mode"):
        raise NotImplementedError("it is in training mode")
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


def make_layer_norm(node: Node) -> Function:
    """LayerNormalization over the axes from ``axis`` on."""
    axis, epsilon = node.attributes["axis"], node.attributes["epsilon"]

    def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis:]
        bias = bias if bias is None else bias.expand(shape)
        return torch.layer_norm(x, shape, scale.expand(shape), bias, epsilon)

    return layer_norm


def make_instance_norm(node: Node) -> Function:
    """InstanceNormalization: each channel is a group of its own."""
    epsilon = node.attributes["epsilon"]
    return lambda x, scale, bias: torch.group_norm(x, x.shape[1], scale, bias, epsilon)


def make_group_norm(node: Node) -> Function:
    """GroupNormalization: before opset 21 scale and bias are of groups, from then on of channels."""
    groups, epsilon, per_group = node.attributes["num_groups"], node.attributes["epsilon"], node.opset < 21

    def group_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if per_group:
            scale, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (scale, bias))
        return torch.group_norm(x, groups, scale, bias, epsilon)

    return group_norm


# Quantisation.


def _per_axis(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """One number for all of a tensor, or one for each index of an axis."""
    if values.dim() == 0 or values.numel() == 1:
        return values.reshape(())
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)


def make_quantize(node: Node) -> Function:
    """QuantizeLinear, per tensor or per axis; halves go to the even step."""
    axis, wanted = node.attributes["axis"], TORCH_DTYPES.get(node.attributes.get("output_dtype", 0))
    if node.attributes.get("block_size"):
        raise NotImplementedError("it quantises by blocks")

    def quantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        dtype = zero.dtype if zero is not None else wanted or torch.uint8
        steps = (x / _per_axis(scale, axis, x)).round()
        if zero is not None:
            steps = steps + _per_axis(zero, axis, x).to(steps.dtype)
        limits = torch.iinfo(dtype)
        return steps.clamp(limits.min, limits.max).to(dtype)

    return quantize


def make_dequantize(node: Node) -> Function:
    """DequantizeLinear, per tensor or per axis, to the type of the scale."""
    axis = node.attributes["axis"]
    if node.attributes.get("block_size"):
        raise NotImplementedError("it was quantised by blocks")

    def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        steps = x.to(torch.int32)
        if zero is not None:
            steps = steps - _per_axis(zero, axis, x).to(torch.int32)
        return steps.to(scale.dtype) * _per_axis(scale, axis, x)

    return dequantize
