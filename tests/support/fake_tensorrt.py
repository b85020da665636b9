"""A TensorRT runtime of plain Python over the fake driver: a "plan" is an ONNX graph, run by ONNX Runtime.

It offers only what the version that it stands for has, and checks what TensorRT checks.
"""

from __future__ import annotations

import enum
import math
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx

from fake_cuda import FakeCuda
from plain_session import plain_session
from rnp_deploy.engines.trt_library import TensorRt

__all__ = ["NAMES_OF_10", "SCRATCH_BYTES", "fake_tensorrt"]

DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT32 INT64 BOOL")
TensorFormat = enum.Enum("TensorFormat", "LINEAR HWC8")
TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
Strategy = enum.Enum("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED")
Specialization = enum.Enum("DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE")
TYPES = {
    onnx.TensorProto.FLOAT: (DataType.FLOAT, np.float32),
    onnx.TensorProto.FLOAT16: (DataType.HALF, np.float16),
    onnx.TensorProto.INT32: (DataType.INT32, np.int32),
    onnx.TensorProto.INT64: (DataType.INT64, np.int64),
    onnx.TensorProto.BOOL: (DataType.BOOL, np.bool_),
}
SCRATCH_BYTES = 1000


class Engine:
    """HWC8 for tensors of rank 4 in half precision; the scratch grows with the number of nodes."""

    def __init__(self, cuda: FakeCuda, plan: bytes) -> None:
        model = onnx.ModelProto.FromString(plan)
        self.cuda = cuda
        self.session = plain_session(plan)
        self.infos = {info.name: info for info in (*model.graph.input, *model.graph.output)}
        self.inputs = [info.name for info in model.graph.input]
        self.num_io_tensors = len(self.infos)
        self.scratch_bytes = SCRATCH_BYTES * len(model.graph.node)

    def get_tensor_name(self, index: int) -> str:
        return list(self.infos)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return TYPES[self.infos[name].type.tensor_type.elem_type][0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        dims = self.infos[name].type.tensor_type.shape.dim
        return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)

    def get_tensor_format(self, name: str) -> TensorFormat:
        eights = len(self.get_tensor_shape(name)) == 4 and self.get_tensor_dtype(name) is DataType.HALF
        return TensorFormat.HWC8 if eights else TensorFormat.LINEAR


class Engine10(Engine):
    @property
    def device_memory_size_v2(self) -> int:
        return self.scratch_bytes

    def create_execution_context(self, strategy: Strategy = Strategy.STATIC) -> Context10:
        assert strategy is Strategy.USER_MANAGED, "every context would have memory of its own"
        return Context10(self)


class EngineRtx(Engine10):
    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(dynamic_shapes_kernel_specialization_strategy=None, strategy=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(
            config, "strategy", strategy
        )
        return config

    def create_execution_context(self, config: Any) -> Context10:
        assert config.strategy is Strategy.USER_MANAGED
        assert config.dynamic_shapes_kernel_specialization_strategy is Specialization.EAGER
        return Context10(self)


class Engine8(Engine):
    @property
    def device_memory_size(self) -> int:
        return self.scratch_bytes

    def create_execution_context_without_device_memory(self) -> Context8:
        return Context8(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch: tuple[int, int] | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        wanted = self.engine.get_tensor_shape(name)
        fits = len(shape) == len(wanted) and all(w in (-1, s) for w, s in zip(wanted, shape, strict=True))
        if fits and shape[0] <= 64:  # the profile's largest batch
            self.shapes[name] = tuple(shape)
            return True
        return False

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, cuda = self.engine, self.engine.cuda
        if self.scratch is None or set(self.addresses) != set(engine.infos) or cuda.lost:
            return False
        pointer, nbytes = self.scratch
        assert nbytes >= engine.scratch_bytes
        scratch, addresses, shapes = (
            cuda.at(pointer, engine.scratch_bytes),
            dict(self.addresses),
            dict(self.shapes),
        )

        def work() -> None:
            scratch.raw = b"\x5a" * len(scratch)  # what another engine has there is gone
            feeds = {name: self._read(name, addresses[name], shapes[name]) for name in engine.inputs}
            outputs = [name for name in engine.infos if name not in engine.inputs]
            for name, value in zip(outputs, engine.session.run(outputs, feeds), strict=True):
                self._write(name, addresses[name], value)

        cuda.enqueue(stream, work)
        return True

    def _lies_as(self, name: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], Any]:
        dtype = np.dtype(TYPES[self.engine.infos[name].type.tensor_type.elem_type][1])
        if self.engine.get_tensor_format(name) is TensorFormat.HWC8:
            n, c, h, w = shape
            return (n, h, w, -(-c // 8) * 8), dtype
        return shape, dtype

    def _memory(self, name: str, address: int, shape: tuple[int, ...]) -> np.ndarray:
        lies, dtype = self._lies_as(name, shape)
        return np.frombuffer(
            self.engine.cuda.at(address, math.prod(lies) * dtype.itemsize), dtype, math.prod(lies)
        ).reshape(lies)

    def _read(self, name: str, address: int, shape: tuple[int, ...]) -> np.ndarray:
        values = self._memory(name, address, shape)
        if len(values.shape) == 4 and self.engine.get_tensor_format(name) is TensorFormat.HWC8:
            values = values[..., : shape[1]].transpose(0, 3, 1, 2)
        return values.copy()

    def _write(self, name: str, address: int, value: np.ndarray) -> None:
        memory = self._memory(name, address, value.shape)
        if self.engine.get_tensor_format(name) is TensorFormat.HWC8:
            memory[:] = np.nan  # nobody says what padded channels hold
            memory[..., : value.shape[1]] = value.transpose(0, 2, 3, 1)
        else:
            memory[...] = value


class Context10(Context):
    def set_device_memory(self, pointer: int, nbytes: int) -> None:
        self.scratch = (pointer, nbytes)


class Context8(Context):
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "device_memory":
            self.scratch = (value, self.engine.scratch_bytes)
        else:
            super().__setattr__(name, value)


def fake_tensorrt(cuda: FakeCuda, version: str = "10.3.0", *, rtx: bool = False) -> TensorRt:
    """As of a version; its runtime loads ONNX graphs and refuses anything else."""
    engine = Engine8 if version.startswith("8") else EngineRtx if rtx else Engine10

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log = log

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            try:
                return engine(cuda, plan)
            except Exception:  # noqa: BLE001 - TensorRT returns None whatever was wrong
                return None

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    module = ModuleType("tensorrt")
    module.__version__, module.Runtime, module.DataType, module.ILogger = version, Runtime, DataType, ILogger
    if not version.startswith("8"):
        module.ExecutionContextAllocationStrategy = Strategy
    if rtx:
        module.DynamicShapesKernelSpecializationStrategy = Specialization
    return TensorRt(module, "rtx" if rtx else "tensorrt", version)


def _public(*kinds: type) -> set[str]:
    return {name for kind in kinds for name in vars(kind) if not name.startswith("_")}


#: TensorRT's class → what of it the stand-in offers, and so the most that the run path can use.
NAMES_OF_10 = {
    "ICudaEngine": _public(Engine, Engine10, EngineRtx) | {"num_io_tensors"},
    "IExecutionContext": _public(Context, Context10),
    "Runtime": {"deserialize_cuda_engine"},
    "DataType": {kind.name for kind in DataType},
    "TensorIOMode": {mode.name for mode in TensorIOMode},
    "IRuntimeConfig": {
        "set_execution_context_allocation_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
    },
    "DynamicShapesKernelSpecializationStrategy": {strategy.name for strategy in Specialization},
    "ExecutionContextAllocationStrategy": {strategy.name for strategy in Strategy},
}
