"""int8 as Q/DQ nodes in the graphs of whole stages, with ranges of activations found on images."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from rnp_deploy.datasets import LabelledImages, spread_rows
from rnp_deploy.engine import Arrays
from rnp_deploy.engines import ort
from rnp_deploy.exporters.masked_stage import MaskedStage
from rnp_deploy.network.channels import ParameterCut
from rnp_deploy.network.runtime_pruned import RuntimePrunedNetwork
from rnp_deploy.network.stages import Stage
from rnp_deploy.progress import Progress

__all__ = ["cuts_of_scales", "quantise_stages"]

#: Symmetric, so that zero is exact and nothing has to be subtracted.
_STEPS = 127
_IMAGES = 256
_BATCH = 16
#: Share of the values of a tensor, in percent, that its range holds: a few outliers are not worth everybody's steps.
_PERCENTILE = 99.999
_LEAST_SCALE = 1e-12
#: Behind the name of what is quantised, the names of its scale and zero point: with a slash, which no parameter has.
_PARTS = ("/scale", "/zero_point")


def quantise_stages(
    network: RuntimePrunedNetwork,
    stages: Sequence[Stage],
    models: Sequence[ir.Model],
    images: LabelledImages,
    progress: Progress,
) -> None:
    """Put Q/DQ nodes before the convolutions and linear layers of stages.

    What a layer reads has one scale, whatever the options; weights one for each output channel. Biases, what lies
    between stages, pooled features and the agent stay float32.

    Args:
        network: On the CPU, in eval mode.
        stages: In torch.
        models: The graphs of the same at full width, with marks, their weights not yet stored; changed in place.
        images: Of the train split; at most 256, evenly taken. Half of them go through random options, and half
            through the agent's own at random prices.
        progress: Told of images seen.

    Raises:
        MissingRuntimeError: onnxruntime, whose calibrator is used, is not installed.
    """
    layers = [_layers(model.graph) for model in models]
    ranges = _ranges(network, stages, models, layers, images, progress)
    for model, own, threshold in zip(models, layers, ranges, strict=True):
        _quantise(model.graph, own, threshold)


def cuts_of_scales(cuts: Mapping[str, Sequence[ParameterCut]]) -> dict[str, list[ParameterCut]]:
    """The cuts, and those of the scales of weights: where output channels go, so do their scales."""
    scales = {
        name + part: [dataclasses.replace(cut, name=name + part) for cut in own if cut.axis == 0]
        for name, own in cuts.items()
        for part in _PARTS
    }
    return scales | {name: list(own) for name, own in cuts.items()}


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A node that multiplies an activation by a weight, whose axis 0 are the output channels."""

    node: ir.Node
    weight: ir.Value

    @property
    def activation(self) -> ir.Value:
        return self.node.inputs[0]  # type: ignore[return-value]


def _layers(graph: ir.Graph) -> list[_Layer]:
    found = []
    for node in graph:
        weight = _weight(node)
        if weight is not None and node.inputs[0] is not None and node.inputs[0].const_value is None:
            found.append(_Layer(node, weight))
    # A weight that anything else reads stays as it is.
    readers = {layer.weight: 0 for layer in found}
    for layer in found:
        readers[layer.weight] += 1
    return [layer for layer in found if len(_readers(layer.weight)) == readers[layer.weight]]


def _weight(node: ir.Node) -> ir.Value | None:
    """The weight of a convolution or linear layer; of a ``MatMul`` what is transposed before it."""
    value = node.inputs[1] if node.op_type in ("Conv", "Gemm", "MatMul") and not node.domain else None
    if node.op_type == "MatMul" and value is not None:
        turn = value.producer()
        value = turn.inputs[0] if turn is not None and turn.op_type == "Transpose" else None
    if node.op_type == "Gemm" and not node.attributes.get_int("transB", 0):
        value = None
    known = value is not None and value.is_initializer() and value.const_value is not None
    return value if known and len(value.const_value.shape) >= 2 else None  # type: ignore[union-attr]


def _readers(weight: ir.Value) -> list[ir.Node]:
    """Nodes that compute with a weight, also those behind a ``Transpose``."""
    readers: list[ir.Node] = []
    for user in weight.consumers():
        readers += user.outputs[0].consumers() if user.op_type == "Transpose" else [user]
    return readers


def _ranges(
    network: RuntimePrunedNetwork,
    stages: Sequence[Stage],
    models: Sequence[ir.Model],
    layers: Sequence[Sequence[_Layer]],
    images: LabelledImages,
    progress: Progress,
) -> list[dict[str, float]]:
    """Of each stage, what its layers read → the largest absolute value its range is to hold."""
    ort.require_runtime()
    from onnxruntime.quantization.calibrate import HistogramCollector

    read = [tuple(dict.fromkeys(str(layer.activation.name) for layer in own)) for own in layers]
    seen, collectors = [], []
    for stage, model, names in zip(stages, models, read, strict=True):
        own_inputs = {tensor.name for tensor in stage.inputs}
        made = tuple(name for name in names if name not in own_inputs)
        seen.append(MaskedStage.open(model, Path(), f"stage {stage.index}", "int8", made))
        collectors.append(HistogramCollector("percentile", True, 2048, 128, _PERCENTILE, "same"))
    rows = spread_rows(images, _IMAGES)
    for start in range(0, len(rows), _BATCH):
        batch = torch.from_numpy(images.read(rows[start : start + _BATCH])[0])
        steps = _inputs_of_stages(network, stages, batch, start)
        for run, names, collector, (inputs, options) in zip(seen, read, collectors, steps, strict=True):
            tensors = {**inputs, **run(inputs, options)}
            with contextlib.redirect_stdout(io.StringIO()):  # it talks
                collector.collect({name: tensors[name] for name in names})
        progress("finding ranges", min(start + _BATCH, len(rows)), len(rows))
    return [_thresholds(collector) for collector in collectors]


def _thresholds(collector: Any) -> dict[str, float]:
    if not collector.get_histogram_dict():
        return {}
    with contextlib.redirect_stdout(io.StringIO()):
        found = collector.compute_collection_result()
    return {name: max(abs(float(low)), abs(float(high))) for name, (low, high, *_) in found.items()}


def _inputs_of_stages(
    network: RuntimePrunedNetwork, stages: Sequence[Stage], images: Tensor, seed: int
) -> Iterator[tuple[Arrays, Mapping[int, NDArray[np.int64]]]]:
    """What each stage is given in the masked reference, and the options: half the agent's own, half random."""
    generator = torch.Generator().manual_seed(seed)
    options = network.random_options(len(images), generator)
    decided = len(images) // 2
    if decided:
        scale = network.agent.scale
        prices = None if scale is None else scale.penalty(torch.rand(decided, generator=generator))
        options[:decided] = network(images[:decided], prices)[1]
    tensors = {"images": images}
    for stage in stages:
        inputs = {tensor.name: tensors[tensor.name] for tensor in stage.inputs}
        taken = {t: options[:, t] for t in stage.option_decisions}
        yield {name: x.numpy() for name, x in inputs.items()}, {t: o.numpy() for t, o in taken.items()}
        results = stage.module(*inputs.values(), *taken.values())
        tensors.update({tensor.name: x for tensor, x in zip(stage.outputs, results, strict=True)})


def _quantise(graph: ir.Graph, layers: Sequence[_Layer], thresholds: Mapping[str, float]) -> None:
    zero = _constant(graph, "int8/zero_point", np.zeros((), np.int8)) if layers else None
    activations: dict[ir.Value, ir.Value] = {}
    for weight in dict.fromkeys(layer.weight for layer in layers):
        _quantise_weight(graph, weight)
    for layer in layers:
        x = layer.activation
        if x not in activations:
            step = max(thresholds[str(x.name)] / _STEPS, _LEAST_SCALE)
            scale = _constant(graph, f"{x.name}/scale", np.float32(step))
            narrow = ir.node("QuantizeLinear", [x, scale, zero])
            back = ir.node("DequantizeLinear", [narrow.outputs[0], scale, zero])
            narrow.outputs[0].name, back.outputs[0].name = f"{x.name}/int8", f"{x.name}/dequantized"
            graph.insert_before(layer.node, [narrow, back])
            activations[x] = back.outputs[0]
        layer.node.replace_input_with(0, activations[x])


def _quantise_weight(graph: ir.Graph, weight: ir.Value) -> None:
    """Store a weight as int8 under its name, with a scale for each output channel."""
    full = weight.const_value.numpy()  # type: ignore[union-attr]
    scale = np.maximum(np.abs(full).max(axis=tuple(range(1, full.ndim))) / _STEPS, _LEAST_SCALE)
    scale = scale.astype(np.float32)
    steps = np.rint(full / scale.reshape(-1, *[1] * (full.ndim - 1))).clip(-_STEPS, _STEPS)
    users = list(weight.uses())
    weight.const_value = ir.Tensor(steps.astype(np.int8), name=str(weight.name))
    weight.type = ir.TensorType(ir.DataType.INT8)
    # ONNX lets it be left out; said, no reader has to know that.
    zeros = _constant(graph, f"{weight.name}/zero_point", np.zeros(len(scale), np.int8))
    inputs = [weight, _constant(graph, f"{weight.name}/scale", scale), zeros]
    node = ir.node("DequantizeLinear", inputs, {"axis": 0})
    node.outputs[0].name = f"{weight.name}/dequantized"
    for user, position in users:
        user.replace_input_with(position, node.outputs[0])
    graph.insert_before(graph[0], node)


def _constant(graph: ir.Graph, name: str, array: NDArray[np.generic] | np.generic) -> ir.Value:
    tensor = ir.Tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
    graph.register_initializer(value)
    return value
