"""The agent step at the end of the branch before it: fewer sessions, fewer nodes, narrower features.

In a session of its own a step costs 13 µs with warm caches and 50 between two branches. Here the
encoder reads the features before zeros are padded to them, the recurrent cell is one ``GRU`` node,
and what depends on the penalty alone is computed once a run, by stage 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rnp_deploy.plan import PENALTY, option_name, state_name

__all__ = ["AgentStepGraph", "add_agent_step", "add_prologue", "bias_name", "price_name", "read_agent_step"]

Array = NDArray[Any]


@dataclass(frozen=True)
class AgentStepGraph:
    """The parts of an exported agent step.

    Attributes:
        weights: Parameter name → array.
        nodes, constants: Of the exported graph.
        position: Tensor ``[N, 1]`` the encoder sees beside the features, or None.
        price: Tensor ``[N, K]`` that is taken off the Q-values.
        options: K.
    """

    weights: Mapping[str, Array]
    nodes: tuple[onnx.NodeProto, ...]
    constants: tuple[onnx.TensorProto, ...]
    position: str | None
    price: str
    options: int

    @property
    def state_size(self) -> int:
        """D."""
        return int(self.weights["cell.weight_hh"].shape[1])


def bias_name(decision: int) -> str:
    """What the encoder of a decision adds ``[N, D]``: its bias, and what it sees of the penalty."""
    return f"agent/bias.{decision}"


def price_name(options: int) -> str:
    """What the decoder adds ``[N, 1 + K]``: of an option 0 that never wins, and of each its bias less its price."""
    return f"agent/price.{options}"


def read_agent_step(model: onnx.ModelProto, arrays: Mapping[str, Array], options: int) -> AgentStepGraph:
    """Find the parts of an agent step as the exporter writes it.

    Args:
        model: Of one decision.
        arrays: Its initializers.
        options: K; the decoder may value more, for other decisions.

    Raises:
        KeyError, ValueError: It is built in another way.
    """
    maker = {output: node for node in model.graph.node for output in node.output}
    reader = {name: node for node in model.graph.node for name in node.input}
    encoder, decoder = reader["encoder.weight"], reader["decoder.weight"]
    position = None
    if encoder.input[0] != "features":
        joined = maker[encoder.input[0]]
        if joined.op_type != "Concat" or list(joined.input)[:1] != ["features"] or len(joined.input) != 2:
            raise ValueError("the encoder does not read the features and one more value")
        position = joined.input[1]
    difference = maker["q_values"]
    valued = maker[difference.input[0]]
    if valued.op_type == "Slice":
        valued = maker[valued.input[0]]
    if difference.op_type != "Sub" or valued is not decoder:
        raise ValueError("the Q-values are not what the decoder gives less a price")
    parameters = ("encoder.weight", "encoder.bias", "cell.weight_ih", "cell.weight_hh", "cell.bias_ih",
                  "cell.bias_hh", "decoder.weight", "decoder.bias")  # fmt: skip
    return AgentStepGraph(
        weights={name: arrays[name][:options] if "decoder" in name else arrays[name] for name in parameters},
        nodes=tuple(model.graph.node),
        constants=tuple(t for t in model.graph.initializer if t.name not in parameters),
        position=position,
        price=difference.input[1],
        options=options,
    )


def add_prologue(graph: onnx.GraphProto, steps: Mapping[int, AgentStepGraph]) -> None:
    """Let a graph compute what depends on the penalty alone, for all decisions: biases and prices.

    Args:
        graph: Of stage 0; ``agent/penalty`` becomes an input of it, and the biases and prices outputs.
        steps: Decision → its agent step.
    """
    graph.input.append(_info(PENALTY, []))
    first = next(iter(steps.values()))
    done: set[str] = set()
    if first.position is not None:
        position = _copied(graph, first, first.position, "agent/position", done)
        weights = [step.weights["encoder.weight"][:, -1] for step in steps.values()]
        biases = [step.weights["encoder.bias"] for step in steps.values()]
        names = [bias_name(t) for t in steps]
        _add(graph, "Gemm", [position, _constant(graph, "agent/position.weight", np.concatenate(weights)[None]),
             _constant(graph, "agent/position.bias", np.concatenate(biases))], ["agent/biases"])  # fmt: skip
        sizes = np.full(len(names), first.state_size, np.int64)
        _add(graph, "Split", ["agent/biases", _constant(graph, "agent/bias.sizes", sizes)], names, axis=1)
        graph.output.extend(_info(name, [first.state_size]) for name in names)
    for step in {step.options: step for step in steps.values()}.values():
        price = _copied(graph, step, step.price, f"agent/k{step.options}", done)
        bias = _constant(graph, f"agent/decoder.bias.{step.options}", step.weights["decoder.bias"])
        _add(graph, "Sub", [bias, price], [f"agent/worth.{step.options}"])
        pads = _constant(graph, "agent/pads", np.array([0, 1, 0, 0], np.int64))
        never = _constant(graph, "agent/never", np.array(np.finfo(np.float32).min))
        _add(graph, "Pad", [f"agent/worth.{step.options}", pads, never], [price_name(step.options)])
        graph.output.append(_info(price_name(step.options), [1 + step.options]))


def add_agent_step(graph: onnx.GraphProto, step: AgentStepGraph, decision: int, features: str) -> None:
    """Put an agent step behind a branch.

    Args:
        graph: Gets inputs for the state and what the prologue made, and outputs for the
            option and the next state.
        step: Of the decision.
        decision: Counted from 0.
        features: The pooled tensor ``[N, C]`` it reads, an input where the graph does not make
            it; zeros padded to it are left out.
    """
    prefix, size = f"agent/{decision}", step.state_size
    weights = step.weights
    encoder = weights["encoder.weight"].T
    channels = encoder.shape[0] - (step.position is not None)
    _taken_in(graph, features, channels)
    read, channels = _before_padding(graph, features, channels)
    bias: str
    if step.position is None:
        bias = _constant(graph, f"{prefix}/encoder.bias", weights["encoder.bias"])
    else:
        bias = _taken_in(graph, bias_name(decision), size)
    _taken_in(graph, state_name(decision), size)
    _taken_in(graph, price_name(step.options), 1 + step.options)
    recurrent = np.concatenate([_zrn(weights["cell.bias_ih"]), _zrn(weights["cell.bias_hh"])])[None]
    zero = _constant(graph, "agent/axis0", np.zeros(1, np.int64))
    encoded = [read, _constant(graph, f"{prefix}/encoder", np.ascontiguousarray(encoder[:channels])), bias]
    _add(graph, "Gemm", encoded, [f"{prefix}/x"])
    _add(graph, "Unsqueeze", [f"{prefix}/x", zero], [f"{prefix}/sequence"])
    _add(graph, "Unsqueeze", [state_name(decision), zero], [f"{prefix}/state"])
    cell = [
        f"{prefix}/sequence",
        _constant(graph, "agent/cell.w", _zrn(weights["cell.weight_ih"])[None]),
        _constant(graph, "agent/cell.r", _zrn(weights["cell.weight_hh"])[None]),
        _constant(graph, "agent/cell.b", recurrent),
        "",
        f"{prefix}/state",
    ]
    _add(graph, "GRU", cell, ["", f"{prefix}/hidden"], hidden_size=size, linear_before_reset=1)
    _add(graph, "Squeeze", [f"{prefix}/hidden", zero], [state_name(decision + 1)])
    # An option 0 that never wins comes before the others, so that the best is 1..K without an addition.
    columns = np.pad(weights["decoder.weight"].T, ((0, 0), (1, 0)))
    decoder = _constant(graph, f"agent/decoder.{step.options}", columns)
    valued = [state_name(decision + 1), decoder, price_name(step.options)]
    _add(graph, "Gemm", valued, [f"{prefix}/q_values"])
    _add(graph, "ArgMax", [f"{prefix}/q_values"], [option_name(decision)], axis=1, keepdims=0)
    graph.output.append(_info(state_name(decision + 1), [size]))
    graph.output.append(_info(option_name(decision), [], onnx.TensorProto.INT64))


def _taken_in(graph: onnx.GraphProto, name: str, size: int) -> str:
    """An input ``[N, size]``, unless the graph has or makes it."""
    if name not in {info.name for info in graph.input}.union(*(node.output for node in graph.node)):
        graph.input.append(_info(name, [size]))
    return name


def _before_padding(graph: onnx.GraphProto, features: str, channels: int) -> tuple[str, int]:
    """The tensor that zeros are padded to, and its channels; or the features as they are."""
    maker = next((node for node in graph.node if features in node.output), None)
    if maker is None or maker.op_type != "Pad" or len(maker.input) < 4:
        return features, channels
    constants = {tensor.name: tensor for tensor in graph.initializer}
    pads, axes = (numpy_helper.to_array(constants[maker.input[i]]).tolist() for i in (1, 3))
    if axes != [1] or pads[0] != 0:
        return features, channels
    return maker.input[0], channels - int(pads[1])


def _zrn(weights: Array) -> Array:
    """Gates in the order of ONNX (update, reset, new) from that of torch (reset, update, new)."""
    reset, update, new = np.split(weights, 3)
    return np.concatenate([update, reset, new])


def _copied(graph: onnx.GraphProto, step: AgentStepGraph, wanted: str, prefix: str, done: set[str]) -> str:
    """Copy what makes a tensor from the penalty; its name in ``graph``."""
    maker = {output: node for node in step.nodes for output in node.output}
    constants = {tensor.name: tensor for tensor in step.constants}

    def rename(name: str) -> str:
        return PENALTY if name == "penalty" else f"{prefix}/{name}"

    def copy(name: str) -> None:
        if rename(name) in done or name == "penalty":
            return
        done.add(rename(name))
        if name in constants:
            constant = onnx.TensorProto()
            constant.CopyFrom(constants[name])
            constant.name = rename(name)
            graph.initializer.append(constant)
            return
        for source in maker[name].input:
            copy(source)
        node = onnx.NodeProto()
        node.CopyFrom(maker[name])
        node.name = f"{prefix}/{node.name}"
        node.input[:] = [rename(source) for source in node.input]
        node.output[:] = [rename(output) for output in node.output]
        graph.node.append(node)

    copy(wanted)
    return rename(wanted)


def _constant(graph: onnx.GraphProto, name: str, array: Array) -> str:
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def _add(graph: onnx.GraphProto, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
    name = next(output for output in reversed(outputs) if output)
    graph.node.append(helper.make_node(kind, inputs, outputs, name=f"make {name}", **attributes))


def _info(name: str, shape: list[int], kind: int = onnx.TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["N", *shape])
