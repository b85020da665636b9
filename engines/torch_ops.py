"""ONNX's operations as torch functions: a table from the name of each to what makes its function.

Attributes come with ONNX's own defaults. What says a shape or an axis is read on the host, so that
no call waits for a GPU, and a call can be captured as a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rnp_deploy.engines.torch_layers import (
    TORCH_DTYPES,
    Function,
    Node,
    make_batch_norm,
    make_conv,
    make_dequantize,
    make_gemm,
    make_group_norm,
    make_instance_norm,
    make_layer_norm,
    make_pool,
    make_quantize,
)

__all__ = ["OPS", "Op"]


class Op(NamedTuple):
    """An operation.

    Attributes:
        make: Raises NotImplementedError for attributes it does not know.
        host: Positions of inputs whose values are read on the host: lists and numbers where they
            are constant, else tensors on the CPU.
        lists: False where constants come as tensors all the same.
        several: Whether it gives more than the first output.
    """

    make: Callable[[Node], Function]
    host: tuple[int, ...] = ()
    lists: bool = True
    several: bool = False


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


def _global_pool(reduce: Callable[..., Tensor]) -> Op:
    return _plain(lambda x: reduce(x, dim=tuple(range(2, x.dim())), keepdim=True))


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
    """The place of the largest or smallest; of equal ones the first."""

    def make(node: Node) -> Function:
        axis, keep = node.attributes["axis"], bool(node.attributes["keepdims"])
        if node.attributes["select_last_index"]:
            raise NotImplementedError("of equal ones it takes the last")
        return lambda x: function(x, axis, keep)

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
        # Backwards, ONNX begins at 0 where Python would take nothing.
        taken = range(x.shape[axis])[start if step > 0 else max(start, -x.shape[axis]) : end : step]
        if step > 0:
            index[axis] = slice(taken.start, taken.stop, step)
            x = x[tuple(index)]
        else:  # torch knows no steps backwards
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


def _range(node: Node) -> Function:
    def numbers(*ends: Tensor) -> Tensor:
        return torch.arange(*(end.item() for end in ends), dtype=ends[0].dtype, device=node.device)

    return numbers


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
    "AveragePool": Op(lambda node: make_pool(node, average=True)),
    "BatchNormalization": Op(make_batch_norm),
    "Cast": Op(_cast),
    "CastLike": _plain(lambda x, like: x.to(like.dtype)),
    "Celu": _with(F.celu, alpha="alpha"),
    "Clip": Op(lambda node: _clipped, host=(1, 2)),
    "Concat": Op(lambda node: lambda *parts: torch.cat(parts, node.attributes["axis"])),
    "Constant": Op(_constant),
    "ConstantOfShape": Op(_constant_of_shape, host=(0,)),
    "Conv": Op(make_conv),
    "DequantizeLinear": Op(make_dequantize),
    "Dropout": Op(lambda node: lambda x, *_: x, host=(1, 2)),
    "Elu": _with(F.elu, alpha="alpha"),
    "Expand": Op(
        lambda node: lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, _listed(shape))), host=(1,)
    ),
    "Flatten": Op(_flatten),
    "Gather": Op(_gather),
    "GatherElements": Op(_gather_elements),
    "GatherND": Op(_gather_nd),
    "Gelu": _with(F.gelu, approximate="approximate"),
    "Gemm": Op(make_gemm),
    "GlobalAveragePool": _global_pool(torch.mean),
    "GlobalMaxPool": _global_pool(torch.amax),
    "GroupNormalization": Op(make_group_norm),
    "HardSigmoid": _with(lambda x, a, b: (a * x + b).clamp(0, 1), a="alpha", b="beta"),
    "Identity": _plain(lambda x: x),
    "InstanceNormalization": Op(make_instance_norm),
    "LayerNormalization": Op(make_layer_norm),
    "LeakyRelu": _with(F.leaky_relu, negative_slope="alpha"),
    "LogSoftmax": _with(torch.log_softmax, dim="axis"),
    "Max": _folded(torch.maximum),
    "MaxPool": Op(lambda node: make_pool(node, average=False)),
    "Mean": _plain(lambda *parts: sum(parts) / len(parts)),
    "Min": _folded(torch.minimum),
    "Mod": Op(_mod),
    "Pad": Op(_pad, host=(1, 2, 3)),
    "QuantizeLinear": Op(make_quantize),
    "Range": Op(_range, host=(0, 1, 2), lists=False),
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
    "Split": Op(_split, host=(1,), several=True),
    "Squeeze": Op(lambda node: _squeezed, host=(1,)),
    "Sum": _folded(torch.add),
    "ThresholdedRelu": _with(lambda x, a: torch.where(x > a, x, 0.0), a="alpha"),
    "Tile": Op(lambda node: lambda x, repeats: x.tile(_listed(repeats)), host=(1,)),
    "Transpose": Op(_transpose),
    "Unsqueeze": Op(lambda node: _unsqueezed, host=(1,)),
    "Where": _plain(torch.where),
}
