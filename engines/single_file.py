"""A whole bundle as one ONNX model: agent and branches, chosen by ``If``, for batches of one.

How it is put together is what ONNX Runtime (1.32, CPU) makes fast:

* Every weight lies once in the outermost graph, and each branch takes its part by a ``Slice``, the whole
  by one too. The runtime folds these when it loads the model, into initializers of the branch, and only
  of such does it bring convolutions into its blocked layout: those that read a weight of the outer graph
  itself were measured to stay in plain layout, twice as slow.
* The branches of a stage are the leaves of a balanced tree of ``If``: with 16 branches, 4 lie one within
  another on the way to any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.bundle.manifest import WEIGHTS_FILE, BranchManifest, StageManifest, TensorManifest
from rnp_deploy.bundle.reading import Bundle
from rnp_deploy.engines.graph_joining import needed_nodes, onnx_module, rename_values
from rnp_deploy.errors import ExportError

__all__ = ["MOST_BYTES", "PRODUCER", "single_file_from_bundle"]

#: What a protobuf file can hold.
MOST_BYTES = 2**31 - 1
#: The ``producer_name`` of the models.
PRODUCER = "rnp-deploy"

#: By decision, the first and last of the options that are still open on the way to a branch.
_Open = dict[int, tuple[int, int]]


def single_file_from_bundle(bundle: Bundle, *, agent: bool = True) -> Any:
    """Join all graphs of a bundle.

    The model takes ``images`` float32 ``[1, C, H, W]`` and ``penalty`` float32 ``[1]``, the agent's own
    where it is not fed; it gives the network's output, ``options`` int64 ``[1, T]`` in 1..k and ``macs``
    int64 ``[1]``, those of the backbone branches taken.

    Args:
        bundle: Verified.
        agent: False: ``options``, which nothing checks, is an input in place of ``penalty``, and
            nothing of the agent is left.

    Returns:
        An ``onnx.ModelProto``, weights inside.

    Raises:
        ExportError: It would pass the 2 GB that a protobuf file can hold.
        IntegrityError: The weights were replaced after the bundle was opened.
        MissingRuntimeError: onnx is not installed.
    """
    onnx = onnx_module()
    size = sum(file.bytes for file in bundle.manifest.files)
    if size > MOST_BYTES:
        raise ExportError(
            f"{size / 1e9:.1f} GB of weights and graphs do not fit into one ONNX file, which protobuf limits "
            "to 2 GB; export a bundle, which has no such limit"
        )
    bundle.check_unchanged()
    joined = _Joined(onnx, bundle, agent)
    for stage in range(len(bundle.manifest.stages)):
        joined.add_stage(stage)
    joined.add_macs()
    return joined.model()


class _Weights:
    """Arrays of ``weights.bin`` as initializers of the outermost graph, each once."""

    def __init__(self, onnx: Any, data: bytes) -> None:
        self._onnx = onnx
        self._data = data
        self._found: dict[tuple[Any, ...], Any] = {}

    def whole(self, tensor: Any) -> str:
        """The name of the weight that an external tensor is, or is the first rows of."""
        (offset,) = (int(entry.value) for entry in tensor.external_data if entry.key == "offset")
        key = (offset, tensor.data_type, *tensor.dims[1:])
        name = f"weight{len(self._found)}/{tensor.name.rpartition('/')[2]}"
        full = self._found.setdefault(key, self._onnx.TensorProto(name=name, data_type=tensor.data_type))
        if not full.dims or full.dims[0] < tensor.dims[0]:
            full.dims[:] = tensor.dims
        return str(full.name)

    def initializers(self) -> list[Any]:
        """All that were asked for, at their full size."""
        for (offset, kind, *_), full in self._found.items():
            item_bytes = self._onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
            full.raw_data = self._data[offset : offset + math.prod(full.dims) * item_bytes]
        return list(self._found.values())


class _Joined:
    """The outermost graph while it grows; ``add_stage`` in order, then ``add_macs`` and ``model``."""

    def __init__(self, onnx: Any, bundle: Bundle, agent: bool) -> None:
        self._onnx = onnx
        self._bundle = bundle
        self._manifest = bundle.manifest
        self._agent = agent
        self._nodes: list[Any] = []
        self._constants: dict[tuple[Any, ...], Any] = {}
        self._weights = _Weights(onnx, (bundle.path / WEIGHTS_FILE).read_bytes())
        self._versions: set[tuple[int, int]] = set()
        self._read = {self._manifest.outputs[0].name}
        self._read.update(tensor.name for stage in self._manifest.stages for tensor in stage.inputs)
        count = len(self._manifest.decisions)
        if agent:
            self._read.update(step.features for step in self._manifest.agent.steps)
            zeros = np.zeros((1, self._manifest.agent.state_size), np.float32)
            self._states = [self._constant(zeros), *(f"state{t}" for t in range(1, count + 1))]
        else:
            self._add("Split", ["options"], [f"option{t}" for t in range(count)], axis=1, num_outputs=count)

    def add_stage(self, s: int) -> None:
        """Add a stage, and before it the decision that opens it."""
        stage = self._manifest.stages[s]
        if stage.decision is not None:
            self._add_decision(stage.decision)
        outputs = self._outputs(stage)
        made = [self._edge(tensor) for tensor in outputs]
        if not stage.option_decisions:
            names = {tensor.name: self._edge(tensor) for tensor in (*stage.inputs, *outputs)}
            self._add_piece(stage.branches[0].file, f"stage{s}", names, made)
            return
        every = {t: (1, self._manifest.option_counts[t]) for t in stage.option_decisions}
        self._nodes.append(self._choice(stage, f"stage{s}", every, made))

    def add_macs(self) -> None:
        """Add the MACs of the branches taken, looked up by what the options make of their indices."""
        manifest = self._manifest
        strides = np.zeros((len(manifest.decisions), len(manifest.stages)), np.int64)
        starts: list[int] = []
        macs: list[int] = []
        for s, stage in enumerate(manifest.stages):
            stride = 1
            for t in reversed(stage.option_decisions):
                strides[t, s] = stride
                stride *= manifest.option_counts[t]
            starts.append(len(macs) - int(strides[:, s].sum()))  # options count from 1
            macs += [branch.macs for branch in sorted(stage.branches, key=lambda branch: branch.options)]
        self._add("MatMul", ["options", self._constant(strides)], ["macs/steps"])
        self._add("Add", ["macs/steps", self._constant(np.array(starts, np.int64))], ["macs/indices"])
        self._add("Gather", [self._constant(np.array(macs, np.int64)), "macs/indices"], ["macs/stages"])
        self._add("ReduceSum", ["macs/stages", self._constant(np.array([1], np.int64))], ["macs"], keepdims=0)

    def model(self) -> Any:
        """What was added, as a model."""
        helper, types, manifest = self._onnx.helper, self._onnx.TensorProto, self._manifest
        options = helper.make_tensor_value_info("options", types.INT64, [1, len(manifest.decisions)])
        price = helper.make_tensor_value_info("penalty", types.FLOAT, [1])
        initializers = [*self._weights.initializers(), *self._constants.values()]
        if self._agent:
            price_taken = np.array([manifest.agent.penalty], np.float32)
            initializers.append(self._onnx.numpy_helper.from_array(price_taken, "penalty"))
        outputs = [self._info(manifest.outputs[0], manifest.outputs[0].name, {})]
        outputs += [options] if self._agent else []
        graph = helper.make_graph(
            self._nodes,
            "rnp",
            [self._info(manifest.inputs[0], manifest.inputs[0].name, {}), price if self._agent else options],
            [*outputs, helper.make_tensor_value_info("macs", types.INT64, [1])],
            initializers,
        )
        ir_version, opset = max(self._versions)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=ir_version,
            producer_name=PRODUCER,
        )

    def _add_decision(self, t: int) -> None:
        """Make ``option{t}``, and for every option but the first whether the one taken is less."""
        manifest, last = self._manifest, t + 1 == len(self._manifest.decisions)
        if self._agent:
            step = manifest.agent.steps[t]
            names = {"features": f"tensor/{step.features}", "state": self._states[t], "penalty": "penalty"}
            names |= {"option": f"option{t}", "next_state": self._states[t + 1]}
            outputs = [f"option{t}", *([] if last else [self._states[t + 1]])]
            self._add_piece(step.file, f"agent{t}", names, outputs)
            if last:
                self._add("Concat", [f"option{i}" for i in range(len(manifest.decisions))], ["taken"], axis=0)
                self._add("Unsqueeze", ["taken", self._constant(np.array([0], np.int64))], ["options"])
        for option in range(2, manifest.option_counts[t] + 1):
            constant = self._constant(np.array([option], np.int64))
            self._add("Less", [f"option{t}", constant], [_below(t, option)])

    def _add_piece(self, file: str, prefix: str, names: dict[str, str], outputs: Sequence[str]) -> None:
        """Add a graph to the outermost one."""
        graph = self._parsed(file)
        names = dict(names)
        for tensor in graph.initializer:
            if tensor.external_data:
                names[tensor.name] = self._weights.whole(tensor)
            else:
                names[tensor.name] = self._constant(self._onnx.numpy_helper.to_array(tensor))
        rename_values(graph, prefix, names)
        self._nodes += needed_nodes(graph.node, outputs)

    def _choice(self, stage: StageManifest, prefix: str, still: _Open, outputs: list[str]) -> Any:
        """The ``If`` that halves the first range of options that is still open."""
        t, (low, high) = next((t, ends) for t, ends in still.items() if ends[0] < ends[1])
        middle = (low + high + 1) // 2
        return self._onnx.helper.make_node(
            "If",
            [_below(t, middle)],
            outputs,
            f"{prefix}/below{middle}",
            then_branch=self._arm(stage, prefix, still | {t: (low, middle - 1)}),
            else_branch=self._arm(stage, prefix, still | {t: (middle, high)}),
        )

    def _arm(self, stage: StageManifest, prefix: str, still: _Open) -> Any:
        """The subgraph for the options that are still open: a branch, or a further choice."""
        ends = [str(low) if low == high else f"{low}to{high}" for low, high in still.values()]
        name = f"{prefix}/{'.'.join(ends)}"
        outputs = [self._info(tensor, self._edge(tensor, name), still) for tensor in self._outputs(stage)]
        if any(low < high for low, high in still.values()):
            nodes = [self._choice(stage, prefix, still, [output.name for output in outputs])]
            return self._onnx.helper.make_graph(nodes, name, [], outputs)
        options = tuple(low for low, _ in still.values())
        branch = next(branch for branch in stage.branches if branch.options == options)
        nodes, initializers = self._leaf(stage, branch, name)
        return self._onnx.helper.make_graph(nodes, name, [], outputs, initializers)

    def _leaf(self, stage: StageManifest, branch: BranchManifest, prefix: str) -> tuple[list[Any], list[Any]]:
        """Nodes and initializers of a branch; its weights are cut out of those of the outermost graph."""
        graph, outputs = self._parsed(branch.file), self._outputs(stage)
        names = {tensor.name: self._edge(tensor) for tensor in stage.inputs}
        names |= {tensor.name: self._edge(tensor, prefix) for tensor in outputs}
        rename_values(graph, prefix, names)
        first, constants = self._constant(np.array([0], np.int64)), []
        cuts = []
        for tensor in graph.initializer:
            if not tensor.external_data:
                constants.append(tensor)
                continue
            rows = self._constant(np.array([tensor.dims[0]], np.int64))
            taken = [self._weights.whole(tensor), first, rows, first]
            cuts.append(self._onnx.helper.make_node("Slice", taken, [tensor.name], f"{prefix}/{tensor.name}"))
        nodes = needed_nodes([*cuts, *graph.node], [self._edge(tensor, prefix) for tensor in outputs])
        used = {name for node in nodes for name in node.input}
        return nodes, [tensor for tensor in constants if tensor.name in used]

    def _edge(self, tensor: TensorManifest, prefix: str = "tensor") -> str:
        """What a tensor between stages is called, in a subgraph of that prefix or outside of all."""
        ends = (*self._manifest.inputs, *self._manifest.outputs)
        kept = prefix == "tensor" and any(tensor.name == end.name for end in ends)
        return tensor.name if kept else f"{prefix}/{tensor.name}"

    def _outputs(self, stage: StageManifest) -> list[TensorManifest]:
        return [tensor for tensor in stage.outputs if tensor.name in self._read]

    def _parsed(self, file: str) -> Any:
        model = self._onnx.ModelProto.FromString(self._bundle.graph(file))
        (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
        self._versions.add((model.ir_version, opset))
        return model.graph

    def _add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, outputs, outputs[0], **attributes))

    def _constant(self, array: NDArray[Any]) -> str:
        """The name of an initializer of the outermost graph that holds the array."""
        key = (array.dtype.str, array.shape, array.tobytes())
        name = f"constant{len(self._constants)}"
        tensor = self._constants.setdefault(key, self._onnx.numpy_helper.from_array(array, name))
        return str(tensor.name)

    def _info(self, tensor: TensorManifest, name: str, still: _Open) -> Any:
        """Type and shape; a size that depends on an open option is left open."""
        decided = {t: low for t, (low, high) in still.items() if low == high}
        shape: list[int | None] = [1, *tensor.shape_at(decided)]
        if tensor.follows is not None and tensor.follows not in decided:
            shape[tensor.axis] = None
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, shape)


def _below(decision: int, option: int) -> str:
    return f"option{decision}_below{option}"
