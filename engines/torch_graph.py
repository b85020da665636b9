"""An ONNX graph as a flat list of torch functions, for any torch device.

onnx2torch was looked at and not taken: its last release (1.5.15) knows no quantisation, no Pad,
ReduceMean or Gelu as opsets 18 to 22 write them, no bfloat16, and copies every graph's weights.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from rnp_deploy.bundle.manifest import WEIGHTS_FILE
from rnp_deploy.engines.torch_layers import TORCH_DTYPES, Function, Node
from rnp_deploy.engines.torch_ops import OPS
from rnp_deploy.errors import EngineError

__all__ = ["Edge", "TorchGraph", "Weights"]

_OPSETS = range(17, 23)
_REMEDY = "run it with backend='onnxruntime'"


class Weights:
    """The weights of a bundle, on a device once; every graph takes views of them.

    On the CPU they are the mapped file itself. They are read when a graph first asks for one.

    Args:
        folder: Of ``weights.bin``.
        device: Where they go.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._file = folder / WEIGHTS_FILE
        self._device = device
        self._lock = threading.Lock()
        self._data: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """What the device holds of them now."""
        return 0 if self._data is None else self._data.numel()

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is a view of them."""
        data = self._data
        return data is not None and tensor.untyped_storage().data_ptr() == data.untyped_storage().data_ptr()

    def tensor(self, stored: TensorProto) -> Tensor:
        """The weight that an external tensor of a graph stands for; raises EngineError."""
        place = {entry.key: entry.value for entry in stored.external_data}
        start, length = int(place.get("offset", 0)), int(place.get("length", 0))
        with self._lock:
            if self._data is None:
                self._data = self._read()
        if place.get("location") != WEIGHTS_FILE or start < 0 or start + length > self._data.numel():
            raise EngineError(f"weight {stored.name!r} does not lie in {self._file}; export the bundle again")
        return (
            self._data[start : start + length]
            .view(_dtype(stored.data_type, stored.name))
            .reshape(tuple(stored.dims))
        )

    def _read(self) -> Tensor:
        try:
            # Copy-on-write, since torch knows no tensor that is read-only; nothing writes to it.
            mapped = np.memmap(self._file, np.uint8, mode="c")
        except (OSError, ValueError) as err:
            raise EngineError(f"{self._file} cannot be read: {err}") from err
        return torch.from_numpy(mapped).to(self._device)


class Edge(NamedTuple):
    """An input or output of a graph; of ``sizes`` those that are left open are None."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]


class _Step(NamedTuple):
    """A node: what it computes, where its inputs lie and its outputs go, and what nothing reads after it."""

    run: Function
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    drops: tuple[int, ...]
    node: str


class TorchGraph:
    """A graph, ready to be called; from several threads at once if need be.

    What depends on constants alone is computed here, once. Values are dropped after their last use.

    Args:
        graph: A serialised ModelProto.
        weights: Of its external tensors.
        device: Where it computes.
        where: Names the graph in errors.

    Attributes:
        inputs, outputs: In the order of a call.
        own_bytes: Of constants that are no views of ``weights``.

    Raises:
        EngineError: It is no graph, or something in it is not known here; the message names the node.
    """

    def __init__(self, graph: bytes, weights: Weights, device: torch.device, where: str) -> None:
        self._where = where
        model, opset = _parsed(graph, where)
        constants: dict[str, Tensor] = {}
        try:
            for tensor in model.graph.initializer:
                external = tensor.data_location == TensorProto.EXTERNAL
                constants[tensor.name] = weights.tensor(tensor) if external else _tensor(tensor)
            self.inputs = tuple(_edge(info) for info in model.graph.input if info.name not in constants)
            self.outputs = tuple(_edge(info) for info in model.graph.output)
        except torch.OutOfMemoryError:
            raise
        except (EngineError, RuntimeError, TypeError, ValueError) as err:
            raise EngineError(f"{where}: {err}") from err
        loader = _Loader(constants, device, opset, where)
        self._feeds = [loader.slot(edge.name) for edge in self.inputs]
        for node in model.graph.node:
            loader.add(node)
        self._results = [loader.read(edge.name) for edge in self.outputs]
        read = {*self._results, *(slot for step in loader.steps for slot in step.reads)}
        self._values = [value if slot in read else None for slot, value in enumerate(loader.values)]
        self._steps = _with_drops(loader.steps, self._values, self._results)
        own = {id(value): value for value in self._values if isinstance(value, Tensor)}.values()
        self.own_bytes = sum(value.nbytes for value in own if not weights.holds(value))

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Compute.

        Args:
            inputs: On the device, in the order of ``inputs``.

        Returns:
            In the order of ``outputs``; they may be views of inputs, weights or one another.

        Raises:
            EngineError: torch refused; the message names the node.
            torch.OutOfMemoryError: As torch raises it.
        """
        values: list[Any] = self._values.copy()
        for slot, tensor in zip(self._feeds, inputs, strict=True):
            values[slot] = tensor
        for step in self._steps:
            try:
                made = step.run(*[values[slot] for slot in step.reads])
            except torch.OutOfMemoryError:
                raise
            except Exception as err:  # torch raises errors of many classes
                raise EngineError(f"{self._where}: {step.node}: torch failed: {err}") from err
            for slot, tensor in zip(step.writes, made if len(step.writes) > 1 else (made,), strict=True):
                values[slot] = tensor
            for slot in step.drops:
                values[slot] = None
        return [values[slot] for slot in self._results]


class _Loader:
    """Turns nodes into steps, one after another.

    Values of shapes, and what is made of them alone, stay on the CPU (``_on_host``), so that a GPU is not
    waited for; they go to the device where tensors there are computed with them.
    """

    def __init__(self, constants: dict[str, Tensor], device: torch.device, opset: int, where: str) -> None:
        self._constants, self._device, self._opset, self._where = constants, device, opset, where
        self._on_host: set[str] = set()
        self._slots: dict[tuple[str, str], int] = {}
        self.values: list[Any] = [None]  # slot 0 is an input that is left out
        self.steps: list[_Step] = []

    def slot(self, name: str, form: str = "", value: Any = None) -> int:
        """Where a value lies, or the form of it that an operation wants."""
        if (name, form) not in self._slots:
            self._slots[name, form] = len(self.values)
            self.values.append(value)
        return self._slots[name, form]

    def read(self, name: str, place: str = "device") -> int:
        """The slot of a value that a node reads on the ``"device"``, on the ``"cpu"``, or as a ``"list"``."""
        if not name:
            return 0
        constant = self._constants.get(name)
        if constant is not None:
            if place == "list":
                return self.slot(name, place, constant.tolist())
            return self.slot(name, place, constant.to(self._device if place == "device" else place))
        if name in self._on_host and place == "device":
            device, source = self._device, self.slot(name)
            if (name, place) not in self._slots:
                move = _Step(
                    lambda x: x.to(device), (source,), (self.slot(name, place),), (), f"value {name!r}"
                )
                self.steps.append(move)
            return self.slot(name, place)
        if (name, "") not in self._slots:
            raise EngineError(f"{self._where}: nothing makes the value {name!r}; export the bundle again")
        return self.slot(name)

    def add(self, node: onnx.NodeProto) -> None:
        """Compute a node's outputs now, where all it reads is constant, or add the step that does."""
        kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        name = f"node {node.name or node.output[0]!r} ({kind})"
        op = OPS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if op is None:
            raise EngineError(f"{self._where}: {name}: torch has no such operation here; {_REMEDY}")
        outputs = list(node.output)
        while outputs and not outputs[-1]:
            outputs.pop()
        if len(outputs) > 1 and not op.several:
            raise EngineError(f"{self._where}: {name}: torch gives its first output alone here; {_REMEDY}")
        data = [value for i, value in enumerate(node.input) if value and i not in op.host]
        constant = all(not value or value in self._constants for value in node.input)
        moving = [value for value in data if value not in self._constants]
        on_host = node.op_type != "Shape" and bool(moving) and all(value in self._on_host for value in moving)
        if constant:
            on_host = all(self._constants[value].device.type == "cpu" for value in data)
        device = torch.device("cpu") if on_host else self._device
        try:
            run = op.make(Node(_attributes(node, self._opset), len(outputs), self._opset, device))
        except (KeyError, NotImplementedError) as err:
            raise EngineError(f"{self._where}: {name}: {err}; torch cannot run it here; {_REMEDY}") from err
        given, host = "cpu" if on_host else "device", "list" if op.lists else "cpu"
        places = [host if i in op.host else given for i in range(len(node.input))]
        if node.op_type == "Shape":
            places = ["cpu" if constant else ""]
        reads = tuple(self.read(value, place) for value, place in zip(node.input, places, strict=True))
        if constant:
            self._fold(outputs, run, reads, name)
            return
        if on_host or node.op_type == "Shape":
            self._on_host.update(outputs)
        writes = [self.slot(value or name, "" if value else f"unread {i}") for i, value in enumerate(outputs)]
        self.steps.append(_Step(run, reads, tuple(writes), (), name))

    def _fold(self, outputs: Sequence[str], run: Function, reads: Sequence[int], name: str) -> None:
        try:
            with torch.inference_mode():
                made = run(*[self.values[slot] for slot in reads])
        except torch.OutOfMemoryError:
            raise
        except Exception as err:  # torch raises errors of many classes
            raise EngineError(f"{self._where}: {name}: torch failed: {err}") from err
        for value, tensor in zip(outputs, made if len(outputs) > 1 else (made,), strict=True):
            self._constants[value] = tensor.contiguous()


def _with_drops(steps: Sequence[_Step], values: Sequence[Any], kept: Sequence[int]) -> tuple[_Step, ...]:
    """Let each step drop what no later one reads, constants and results excepted."""
    needed = {*kept, *(slot for slot, value in enumerate(values) if value is not None), 0}
    dropping = []
    for step in reversed(steps):
        drops = tuple(sorted({*step.reads, *step.writes} - needed))
        needed.update(drops)
        dropping.append(step._replace(drops=drops))
    return tuple(reversed(dropping))


def _parsed(graph: bytes, where: str) -> tuple[onnx.ModelProto, int]:
    """The model and its opset; raises EngineError."""
    try:
        model = onnx.ModelProto.FromString(graph)
    except Exception as err:  # protobuf's classes differ between its implementations
        raise EngineError(f"{where}: onnx {onnx.__version__} cannot load it: {err}") from err
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if not model.graph.output:
        raise EngineError(f"{where}: onnx {onnx.__version__} cannot load it: it is no graph")
    if opsets.get("ai.onnx") not in _OPSETS:
        raise EngineError(
            f"{where}: it is of opset {opsets.get('ai.onnx')}; the torch backend knows "
            f"{_OPSETS[0]} to {_OPSETS[-1]}; {_REMEDY}"
        )
    return model, opsets["ai.onnx"]


def _attributes(node: onnx.NodeProto, opset: int) -> dict[str, Any]:
    """Those given, and ONNX's defaults of those that are not."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    defaults = [entry.default_value for entry in schema.attributes.values() if entry.default_value.type]
    return {entry.name: _attribute(entry) for entry in (*defaults, *node.attribute)}


def _attribute(entry: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(entry)
    if isinstance(value, TensorProto):
        return _tensor(value)
    return value.decode() if isinstance(value, bytes) else value


def _dtype(number: int, name: str) -> torch.dtype:
    dtype = TORCH_DTYPES.get(number)
    if dtype is None:
        raise EngineError(
            f"{name!r} is a {TensorProto.DataType.Name(number)}, which torch has not; {_REMEDY}"
        )
    return dtype


def _tensor(stored: TensorProto) -> Tensor:
    """A tensor inside a graph, on the CPU."""
    dtype, shape = _dtype(stored.data_type, stored.name), tuple(stored.dims)
    data = numpy_helper.to_array(stored).tobytes()  # numpy itself has no bfloat16
    return (
        torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
        if data
        else torch.empty(shape, dtype=dtype)
    )


def _edge(info: onnx.ValueInfoProto) -> Edge:
    kind = info.type.tensor_type
    sizes = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return Edge(info.name, _dtype(kind.elem_type, info.name), sizes)
