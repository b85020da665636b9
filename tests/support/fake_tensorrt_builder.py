"""A TensorRT that builds: it has no name that its version lacks, and writes down what it was told.

A plan is the JSON of what the engine would be. Versions: "8.5.3.1", "10.3.0", "11.4.0".
"""

from __future__ import annotations

import enum
import json
from types import ModuleType
from typing import Any

import onnx

__all__ = ["fake_tensorrt_builder"]

_OF_TYPE = {1: "FLOAT", 10: "HALF", 16: "BF16", 6: "INT32", 7: "INT64"}


def _enums(major: int) -> dict[str, list[str]]:
    flags = {8: ["EXPLICIT_BATCH"], 10: ["EXPLICIT_BATCH", "STRONGLY_TYPED"], 11: ["STRONGLY_TYPED"]}
    own = ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
    return {
        "NetworkDefinitionCreationFlag": flags[major],
        "BuilderFlag": ["TF32", *(["FP16", "INT8"] if major < 11 else [])],
        "DataType": ["FLOAT", "HALF", "INT8", "INT32", "BOOL", *(["INT64", "BF16"] if major > 8 else [])],
        "TacticSource": own if major == 11 else ["CUBLAS", "CUBLAS_LT", "CUDNN", *own],
        "TensorFormat": ["LINEAR", "CHW2", "HWC8"],
        "TensorIOMode": ["NONE", "INPUT", "OUTPUT"],
        "MemoryPoolType": ["WORKSPACE"],
        "ProfilingVerbosity": ["LAYER_NAMES_ONLY", "DETAILED", "NONE"],
        "LayerInformationFormat": ["ONELINE", "JSON"],
        "LayerType": ["CONVOLUTION", "OTHER"],
    }


def fake_tensorrt_builder(  # noqa: C901 - classes inside
    version: str, told: list[dict[str, Any]], **changes: Any
) -> ModuleType:
    """The module.

    Args:
        version: Of TensorRT.
        told: Gets a dict for each engine built: its flags, options and profile.
        changes: What goes wrong: ``refused`` (an ONNX type of node that the parser does not take),
            ``layers`` (what the inspector says), ``half_as``, ``half_conv_as``
            (what becomes of edges and convolutions of half precision), ``nothing``, ``unloadable``.
    """
    major = int(version.partition(".")[0])
    trt = ModuleType("tensorrt")
    trt.__version__ = version
    kinds = {name: enum.IntEnum(name, names, start=0) for name, names in _enums(major).items()}
    for name, kind in kinds.items():
        setattr(trt, name, kind)
    timing_head = f"timings of {version}: ".encode()

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    class Tensor:
        def __init__(self, info: Any) -> None:
            kind = info.type.tensor_type
            self.name = info.name
            self.dtype = trt.DataType[_OF_TYPE[kind.elem_type]]
            self.shape = [-1, *(dim.dim_value for dim in list(kind.shape.dim)[1:])]
            self.allowed_formats = 0b111

    class Layer:
        def __init__(self, node: Any, weights: dict[str, int]) -> None:
            self.type = trt.LayerType["CONVOLUTION" if node.op_type == "Conv" else "OTHER"]
            made = _OF_TYPE[weights.get(node.input[1], 1)] if node.op_type == "Conv" else "FLOAT"
            self._dtype = trt.DataType[changes.get("half_conv_as", made) if made == "HALF" else made]

        def get_output(self, index: int) -> Any:
            return type("Output", (), {"dtype": self._dtype})

    class Network:
        name = "Unnamed Network"

        def __init__(self, flags: int) -> None:
            self.created_with, self.inputs, self.outputs, self.layers = flags, [], [], []

        num_inputs = property(lambda self: len(self.inputs))
        num_outputs = property(lambda self: len(self.outputs))
        num_layers = property(lambda self: len(self.layers))

        def get_input(self, index: int) -> Tensor:
            return self.inputs[index]

        def get_output(self, index: int) -> Tensor:
            return self.outputs[index]

        def get_layer(self, index: int) -> Layer:
            return self.layers[index]

    class ParserError:
        def __init__(self, index: int) -> None:
            self._index = index

        def node(self) -> int:
            return self._index

        def desc(self) -> str:
            return "no importer\nfor it"

    class OnnxParser:
        def __init__(self, network: Network, logger: ILogger) -> None:
            self._network, self._errors = network, []

        num_errors = property(lambda self: len(self._errors))

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]

        def parse(self, data: bytes) -> bool:
            graph = onnx.ModelProto.FromString(data).graph
            refused = [i for i, node in enumerate(graph.node) if node.op_type == changes.get("refused")]
            self._errors = [ParserError(i) for i in refused]
            self._network.inputs = [Tensor(info) for info in graph.input]
            self._network.outputs = [Tensor(info) for info in graph.output]
            weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
            self._network.layers = [Layer(node, weights) for node in graph.node]
            return not refused

    class TimingCache:
        def __init__(self, data: bytes) -> None:
            self.fits, self.data = not data or data.startswith(timing_head), data

        def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
            if not other.fits:
                return False
            known = sorted({*self.data.removeprefix(timing_head), *other.data.removeprefix(timing_head)})
            self.data = timing_head + bytes(known)
            return True

        def serialize(self) -> bytes:
            return self.data

    class Config:
        if major > 8:
            max_aux_streams = 7

        def __init__(self) -> None:
            self.told: dict[str, Any] = {"flags": {"TF32"}}
            self.profiling_verbosity = trt.ProfilingVerbosity.LAYER_NAMES_ONLY
            self._timings: TimingCache | None = None

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self.told[pool.name] = size

        def set_flag(self, flag: Any) -> None:
            self.told["flags"].add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            self.told["flags"].discard(flag.name)

        def get_tactic_sources(self) -> int:
            return sum(1 << source for source in trt.TacticSource)

        def set_tactic_sources(self, mask: int) -> bool:
            self.told["tactics"] = [source.name for source in trt.TacticSource if mask >> source & 1]
            return True

        def create_timing_cache(self, data: bytes) -> TimingCache:
            return TimingCache(data)

        def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
            self._timings = cache
            return True

        def get_timing_cache(self) -> TimingCache | None:
            return self._timings

        def add_optimization_profile(self, profile: Profile) -> int:
            self.told["profile"] = profile.shapes
            return 0

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, name: str, least: Any, opt: Any, most: Any) -> None:
            self.shapes[name] = [least, opt, most]

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            logger.log(ILogger.WARNING, "a fake")

        def create_network(self, flags: int) -> Network:
            return Network(flags)

        def create_builder_config(self) -> Config:
            return Config()

        def create_optimization_profile(self) -> Profile:
            return Profile()

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            if changes.get("nothing"):
                return None
            flags = trt.NetworkDefinitionCreationFlag
            created = [flag.name for flag in flags if network.created_with >> flag & 1]
            streams = getattr(config, "max_aux_streams", None)
            told.append({**config.told, "name": network.name, "created": created, "streams": streams})
            if config._timings is not None:
                before = config._timings.data
                told[-1]["timings"] = before
                config._timings.data = (before or timing_head) + bytes([ord("a") + len(told)])
            edges = [
                [tensor.name, mode, tensor.dtype.name, list(tensor.shape), tensor.allowed_formats]
                for mode, tensors in (("INPUT", network.inputs), ("OUTPUT", network.outputs))
                for tensor in tensors
            ]
            return json.dumps(edges).encode()

    class Engine:
        def __init__(self, plan: bytes) -> None:
            self._edges = {name: rest for name, *rest in json.loads(plan)}
            self.num_io_tensors = len(self._edges)

        def get_tensor_name(self, index: int) -> str:
            return list(self._edges)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode[self._edges[name][0]]

        def get_tensor_dtype(self, name: str) -> Any:
            made = self._edges[name][1]
            return trt.DataType[changes.get("half_as", made) if made == "HALF" else made]

        def get_tensor_shape(self, name: str) -> list[int]:
            return self._edges[name][2]

        def get_tensor_format(self, name: str) -> Any:
            return trt.TensorFormat(self._edges[name][3].bit_length() - 1)

        def create_engine_inspector(self) -> Any:
            layers = changes.get("layers", "Half FP16 BF16 Int8")
            return type("Inspector", (), {"get_engine_information": lambda self, form: layers})()

    class Runtime:
        def __init__(self, logger: ILogger) -> None:
            self._loads = not changes.get("unloadable")

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            return Engine(plan) if self._loads else None

    for kind in (ILogger, OnnxParser, Builder, Runtime):
        setattr(trt, kind.__name__, kind)
    return trt
