"""ONNX's operations as torch functions: a table from the name of each to what makes its function.

Attributes come with ONNX's own defaults. What says a shape or an axis is read on the host, so that
no call waits for a GPU, and a call can be captured as a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

__all__ = ["OPS", "TORCH_DTYPES", "Function", "Node", "Op"]

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


class Op(NamedTuple):
    """An operation.

    Attributes:
        make: Raises NotImplementedError for attributes it does not know.
        host: Positions of inputs whose values are read on the host: lists and numbers where they
            are constant, else tensors on the CPU.
    """

    make: Callable[[Node], Function]
    host: tuple[int, ...] = ()


def _plain(function: Function) -> Op:
    """An operation without attributes."""
    return Op(lambda node: function)


def _with(function: Function, **names: str) -> Op:
    """An operation whose attributes are keyword arguments: torch's name → ONNX's."""

    def make(node: Node) -> Function:
        arguments = {ours: node.attributes[theirs] for ours, theirs in names.items()}
        return lambda *inputs: function(*inputs, **arguments)

    return Op(make)


def _listed(values: Any) -> Any:
    """Of an input on the host: a list, or a number where it has no axis."""
    return values.tolist() if isinstance(values, Tensor) else values


def _number(value: Any, otherwise: Any = None) -> Any:
    value = _listed(value)
    value = value[0] if isinstance(value, list) and value else value
    return otherwise if value is None else value


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
    """

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self._attributes = attributes
        self._auto = attributes["auto_pad"]
        self._known: dict[tuple[torch.Size, torch.Size], list[_Axis]] = {}

    def of(self, sizes: torch.Size, kernel: torch.Size) -> list[_Axis]:
        """Of an image of some size, axis by axis; kept, since the same ones come again and again."""
        axes = self._known.get((sizes, kernel))
        if axes is None:
            n = len(sizes)
            strides, dilations = (self._attributes.get(name) or [1] * n for name in ("strides", "dilations"))
            pads = self._attributes.get("pads") or [0] * 2 * n
            axes = [_Axis(*each) for each in zip(sizes, kernel, strides, dilations, pads[:n], pads[n:], strict=True)]
            if self._auto != "NOTSET":
                axes = [self._auto_padded(axis) for axis in axes]
            self._known[sizes, kernel] = axes
        return axes

    def _auto_padded(self, axis: _Axis) -> _Axis:
        reach = axis.dilation * (axis.kernel - 1) + 1
        missing = max((-(-axis.size // axis.stride) - 1) * axis.stride + reach - axis.size, 0)
        less, more = missing // 2, missing - missing // 2
        before, after = {"VALID": (0, 0), "SAME_UPPER": (less, more), "SAME_LOWER": (more, less)}[self._auto]
        return axis._replace(before=before, after=after)


def _padded(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Pad the last axes; torch wants the last one first."""
    return F.pad(x, [amount for pair in reversed(pads) for amount in pair], value=value)


_CONVOLUTIONS: Mapping[int, Function] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_POOLS: Mapping[int, Function] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: Mapping[int, Function] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _conv(node: Node) -> Function:
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


def _pool(node: Node, *, average: bool) -> Function:
    """Max or average pooling; padding that torch's own does not know is put there first."""
    attributes = node.attributes
    windows, kernel = _Windows(attributes), torch.Size(attributes["kernel_shape"])
    ceil, count_pads = bool(attributes["ceil_mode"]), bool(attributes.get("count_include_pad", 0))
    if node.outputs > 1:
        raise NotImplementedError("its indices are asked for")
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
            made = _MAX_POOLS[n](x, kernel, strides, padding, [axis.dilation for axis in axes], ceil and known)
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


def _global_pool(reduce: Callable[..., Tensor]) -> Op:
    return _plain(lambda x: reduce(x, dim=tuple(range(2, x.dim())), keepdim=True))


# Products and norms.


def _gemm(node: Node) -> Function:
    alpha, beta, turn_a, turn_b = (node.attributes[name] for name in ("alpha", "beta", "transA", "transB"))

    def gemm(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.T if turn_a else a, b.T if turn_b else b
        if c is None:
            return alpha * (a @ b) if alpha != 1 else a @ b
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return gemm


def _batch_norm(node: Node) -> Function:
    epsilon = node.attributes["epsilon"]
    if node.attributes.get("training_mode"):
        raise NotImplementedError("it is in training mode")
    return lambda x, scale, bias, mean, var: F.batch_norm(x, mean, var, scale, bias, eps=epsilon)


def _layer_norm(node: Node) -> Function:
    axis, epsilon = node.attributes["axis"], node.attributes["epsilon"]
    if node.outputs > 1:
        raise NotImplementedError("its mean or deviation is asked for")

    def layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = x.shape[axis:]
        bias = bias if bias is None else bias.expand(shape)
        return torch.layer_norm(x, shape, scale.expand(shape), bias, epsilon)

    return layer_norm


def _instance_norm(node: Node) -> Function:
    epsilon = node.attributes["epsilon"]
    return lambda x, scale, bias: torch.group_norm(x, x.shape[1], scale, bias, epsilon)


def _group_norm(node: Node) -> Function:
    groups, epsilon, per_group = node.attributes["num_groups"], node.attributes["epsilon"], node.opset < 21

    def group_norm(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if per_group:
            scale, bias = (each.repeat_interleave(x.shape[1] // groups) for each in (scale, bias))
        return torch.group_norm(x, groups, scale, bias, epsilon)

    return group_norm


# One element at a time.


def _divided(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _mod(node: Node) -> Function:
    return torch.fmod if node.attributes["fmod"] else torch.remainder


def _clipped(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    low, high = _number(low), _number(high)
    return x if low is None and high is None else torch.clamp(x, low, high)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    """An operation of two made one of any number."""

    def every(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return _plain(every)


def _cast(node: Node) -> Function:
    dtype = TORCH_DTYPES.get(node.attributes["to"])
    if dtype is None:
        raise NotImplementedError(f"it casts to element type {node.attributes['to']}")
    return lambda x: x.to(dtype)


def _per_axis(values: Tensor, axis: int, like: Tensor) -> Tensor:
    """One number for all of a tensor, or one for each index of an axis."""
    if values.dim() == 0 or values.numel() == 1:
        return values.reshape(())
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _quantize(node: Node) -> Function:
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


def _dequantize(node: Node) -> Function:
    axis = node.attributes["axis"]
    if node.attributes.get("block_size"):
        raise NotImplementedError("it was quantised by blocks")

    def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        steps = x.to(torch.int32)
        if zero is not None:
            steps = steps - _per_axis(zero, axis, x).to(torch.int32)
        return steps.to(scale.dtype) * _per_axis(scale, axis, x)

    return dequantize


# Along axes.


def _reduction(reduce: Callable[[Tensor, list[int], bool], Tensor]) -> Op:
    """``reduce`` takes a tensor, axes, and whether they stay with size 1."""

    def make(node: Node) -> Function:
        keep, given = bool(node.attributes["keepdims"]), node.attributes.get("axes")
        nothing = bool(node.attributes.get("noop_with_empty_axes", 0))

        def reduced(x: Tensor, axes: Any = None) -> Tensor:
            chosen = _listed(axes) or given
            if not chosen and nothing:
                return x
            return reduce(x, list(chosen or range(x.dim())), keep)

        return reduced

    return Op(make, host=(1,))


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keep)
    return x


def _extreme(function: Callable[..., Tensor]) -> Op:
    """The place of the largest or smallest; of equal ones the first, or the last."""

    def make(node: Node) -> Function:
        axis, keep, last = (node.attributes[name] for name in ("axis", "keepdims", "select_last_index"))

        def extreme(x: Tensor) -> Tensor:
            found = function(x.flip(axis) if last else x, axis, bool(keep))
            return x.shape[axis] - 1 - found if last else found

        return extreme

    return Op(make)


# Shapes.


def _reshape(node: Node) -> Function:
    zero_is_zero = bool(node.attributes["allowzero"])

    def reshape(x: Tensor, shape: Any) -> Tensor:
        sizes = _listed(shape)
        if not zero_is_zero:
            sizes = [size or x.shape[i] for i, size in enumerate(sizes)]
        return x.reshape(sizes)

    return reshape


def _flatten(node: Node) -> Function:
    axis = node.attributes["axis"]

    def flatten(x: Tensor) -> Tensor:
        rows = math.prod(x.shape[:axis])
        return x.reshape(rows, math.prod(x.shape[axis:]))

    return flatten


def _transpose(node: Node) -> Function:
    perm = node.attributes.get("perm")
    return lambda x: x.permute(perm or tuple(reversed(range(x.dim()))))


def _squeezed(x: Tensor, axes: Any = None) -> Tensor:
    axes = _listed(axes)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueezed(x: Tensor, axes: Any) -> Tensor:
    axes = _listed(axes)
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _split(node: Node) -> Function:
    axis, outputs = node.attributes["axis"], node.attributes.get("num_outputs", node.outputs)

    def split(x: Tensor, sizes: Any = None) -> tuple[Tensor, ...]:
        sizes = _listed(sizes)
        return torch.split(x, -(-x.shape[axis] // outputs) if sizes is None else sizes, axis)

    return split


def _sliced(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    starts, ends, axes, steps = (_listed(values) for values in (starts, ends, axes, steps))
    axes = range(len(starts)) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        index = [slice(None)] * x.dim()
        if step > 0:
            index[axis] = slice(start, end, step)
            x = x[tuple(index)]
        else:  # torch knows no steps backwards
            taken = range(x.shape[axis])[start:end:step]
            index[axis] = slice(taken[-1], taken[0] + 1, -step) if taken else slice(0, 0)
            x = x[tuple(index)].flip(axis)
    return x


def _pad(node: Node) -> Function:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        node.attributes["mode"]
    ]

    def pad(x: Tensor, pads: Any, value: Any = None, axes: Any = None) -> Tensor:
        pads, axes = _listed(pads), _listed(axes)
        axes = range(x.dim()) if axes is None else axes
        amounts = [0] * 2 * x.dim()
        for i, axis in enumerate(axes):
            last = x.dim() - 1 - axis % x.dim()
            amounts[2 * last : 2 * last + 2] = pads[i], pads[len(axes) + i]
        if mode == "constant":
            return F.pad(x, amounts, value=_number(value, 0))
        while amounts and amounts[-2:] == [0, 0]:
            amounts = amounts[:-2]
        return F.pad(x, amounts, mode)

    return pad


def _gather(node: Node) -> Function:
    axis = node.attributes["axis"]

    def gather(x: Tensor, indices: Tensor) -> Tensor:
        where = axis % x.dim()
        indices = torch.where(indices < 0, indices + x.shape[where], indices)
        taken = x.index_select(where, indices.reshape(-1))
        return taken.reshape(x.shape[:where] + indices.shape + x.shape[where + 1 :])

    return gather


def _gather_nd(node: Node) -> Function:
    if node.attributes["batch_dims"]:
        raise NotImplementedError("its batch_dims is not 0")
    return lambda x, indices: x[indices.unbind(-1)]


def _gather_elements(node: Node) -> Function:
    axis = node.attributes["axis"]
    return lambda x, indices: x.gather(axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _shape(node: Node) -> Function:
    start, end = node.attributes["start"], node.attributes.get("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


def _constant_of_shape(node: Node) -> Function:
    value = node.attributes.get("value", torch.zeros(1)).to(node.device).reshape(())
    return lambda shape: value.expand(_listed(shape))


def _constant(node: Node) -> Function:
    numbers: dict[str, torch.dtype] = {
        "value_float": torch.float32, "value_floats": torch.float32,
        "value_int": torch.int64, "value_ints": torch.int64,
    }  # fmt: skip
    for name, dtype in numbers.items():
        if name in node.attributes:
            return lambda: torch.tensor(node.attributes[name], dtype=dtype)
    value = node.attributes["value"]
    return lambda: value


def _range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


_UNARY: Mapping[str, Function] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh,
    "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor, "HardSwish": F.hardswish, "IsNaN": torch.isnan,
    "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Sinh": torch.sinh, "Softplus": F.softplus, "Softsign": F.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan,
    "Tanh": torch.tanh,
}  # fmt: skip
_BINARY: Mapping[str, Function] = {
    "Add": torch.add, "And": torch.logical_and, "Div": _divided, "Equal": torch.eq, "Greater": torch.gt,
    "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "MatMul": torch.matmul,
    "Mul": torch.mul, "Or": torch.logical_or, "Sub": torch.sub, "Xor": torch.logical_xor,
    "Pow": lambda x, y: torch.pow(x, y).to(x.dtype), "PRelu": lambda x, slope: torch.where(x < 0, slope * x, x),
}  # fmt: skip

OPS: Mapping[str, Op] = {
    **{kind: _plain(function) for kind, function in (*_UNARY.items(), *_BINARY.items())},
    "ArgMax": _extreme(torch.argmax),
    "ArgMin": _extreme(torch.argmin),
    "AveragePool": Op(lambda node: _pool(node, average=True)),
    "BatchNormalization": Op(_batch_norm),
    "Cast": Op(_cast),
    "CastLike": _plain(lambda x, like: x.to(like.dtype)),
    "Celu": _with(F.celu, alpha="alpha"),
    "Clip": Op(lambda node: _clipped, host=(1, 2)),
    "Concat": Op(lambda node: lambda *parts: torch.cat(parts, node.attributes["axis"])),
    "Constant": Op(_constant),
    "ConstantOfShape": Op(_constant_of_shape, host=(0,)),
    "Conv": Op(_conv),
    "DequantizeLinear": Op(_dequantize),
    "Dropout": Op(lambda node: lambda x, *_: x, host=(1, 2)),
    "Elu": _with(F.elu, alpha="alpha"),
    "Expand": Op(lambda node: lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, _listed(shape))), host=(1,)),
    "Flatten": Op(_flatten),
    "Gather": Op(_gather),
    "GatherElements": Op(_gather_elements),
    "GatherND": Op(_gather_nd),
    "Gelu": _with(F.gelu, approximate="approximate"),
    "Gemm": Op(_gemm),
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "GroupNormalization": Op(_group_norm),
    "HardSigmoid": _with(lambda x, a, b: (a * x + b).clamp(0, 1), a="alpha", b="beta"),
    "Identity": _plain(lambda x: x),
    "InstanceNormalization": Op(_instance_norm),
    "LayerNormalization": Op(_layer_norm),
    "LeakyRelu": _with(F.leaky_relu, negative_slope="alpha"),
    "LogSoftmax": _with(torch.log_softmax, dim="axis"),
    "Max": _folded(torch.maximum),
    "MaxPool": Op(lambda node: _pool(node, average=False)),
    "Mean": _plain(lambda *parts: sum(parts) / len(parts)),
    "Min": _folded(torch.minimum),
    "Mod": Op(_mod),
    "Pad": Op(_pad, host=(1, 2, 3)),
    "QuantizeLinear": Op(_quantize),
    "Range": _plain(_range),
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(torch.sum),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Reshape": Op(_reshape, host=(1,)),
    "Selu": _with(lambda x, a, g: g * torch.where(x > 0, x, a * torch.expm1(x)), a="alpha", g="gamma"),
    "Shape": Op(_shape),
    "Slice": Op(lambda node: _sliced, host=(1, 2, 3, 4)),
    "Softmax": _with(torch.softmax, dim="axis"),
    "Split": Op(_split, host=(1,)),
    "Squeeze": Op(lambda node: _squeezed, host=(1,)),
    "Sum": _folded(torch.add),
    "ThresholdedRelu": _with(lambda x, a: torch.where(x > a, x, 0.0), a="alpha"),
    "Tile": Op(lambda node: lambda x, repeats: x.tile(_listed(repeats)), host=(1,)),
    "Transpose": Op(_transpose),
    "Unsqueeze": Op(lambda node: _unsqueezed, host=(1,)),
    "Where": _plain(torch.where),
}
