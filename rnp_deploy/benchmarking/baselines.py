"""Models of the user's own, from files, made ready to be timed beside a controller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rnp_deploy.benchmarking.rivals import Rival, contender_of
from rnp_deploy.engine import Engine
from rnp_deploy.engines.backends import Opened
from rnp_deploy.engines.graph_joining import onnx_module
from rnp_deploy.engines.single_file import PRODUCER
from rnp_deploy.engines.static_engines import flavor_of
from rnp_deploy.errors import EngineError, InputError, MissingRuntimeError

__all__ = ["baseline_rival"]

_PLANS = (".plan", ".engine")
_WANTED = "a baseline is an .onnx file, or a .plan or .engine of TensorRT"

#: Input → its type, and its sizes: None where any goes, or all of them None where the file does not say.
_Inputs = Mapping[str, tuple[str, Sequence[int | None] | None]]


@dataclass(frozen=True)
class _File:
    """What openers of engines read from, see :class:`rnp_deploy.engines.ort.GraphSource`."""

    path: Path
    data: bytes

    def graph(self, path: str) -> bytes:
        """All of it."""
        return self.data

    def check_unchanged(self) -> None:
        """It was read as a whole; weights beside it are the user's own."""


def baseline_rival(
    path: str | Path, opened: Opened, *, batch: int, threads: int | None, penalty: float | None = None
) -> Rival:
    """Open a model of the user's own.

    A plan of TensorRT can hold code, which runs when it is loaded: pass files that you trust.

    Args:
        path: An ``.onnx`` file with one float32 input ``[N, C, H, W]``, run by ONNX Runtime on the controller's
            device, its weights inside or beside it; also as ``rnp-export --single-file`` writes it, for one image on the CPU; or a ``.plan``
            or ``.engine`` of TensorRT with such an input, beside a controller on the GPU.
        opened: What the controller runs on.
        batch: Images per run.
        threads: As the controller was given them.
        penalty: Fed to a single-file model; None: its own.

    Returns:
        Named as the file is. It gives the first of the model's outputs.

    Raises:
        InputError: There is no such file, it is of another kind, takes other inputs, or is a plan where the controller
            is on the CPU.
        EngineError: The runtime cannot load it, or all of it on the GPU where the controller is; of these
            MissingRuntimeError where that runtime is not installed.
    """
    path = Path(path)
    data = _content(path)
    shape = opened.source.manifest.inputs[0].shape
    if path.suffix.lower() in _PLANS:
        plan, inputs = _plan_engine(path, data, opened)
        name_in = _checked_input(path, inputs, shape, batch)
        return Rival(path.name, "baseline", contender_of(plan, opened.memory, name_in))
    model = _model(path, data)
    if _is_single_file(model):
        return _single_file(path, model, opened, batch, threads, penalty)
    name_in = _checked_input(path, _inputs(model), shape, batch)
    engine = _onnx_engine(path, data, opened, threads)
    return Rival(path.name, "baseline", contender_of(engine, opened.memory, name_in))


def _single_file(
    path: Path, model: Any, opened: Opened, batch: int, threads: int | None, penalty: float | None
) -> Rival:
    """A model that decides by itself, fed with the penalty where there is one."""
    from rnp_deploy.engines import ort

    if batch != 1:
        raise InputError(f"{path}: a single-file model takes one image a run; use a batch of 1, not {batch}")
    if opened.device != "cpu":
        raise InputError(f"{path}: a single-file model runs on the CPU alone; time the controller there too")
    name_in = _checked_input(path, _inputs(model), opened.source.manifest.inputs[0].shape, batch)
    engine = ort.engine_from_onnx(model.SerializeToString(), path.parent, str(path), threads)
    fed = {} if penalty is None else {"penalty": np.array([penalty], np.float32)}
    first = model.graph.output[0].name
    return Rival(path.name, "single-file", lambda _, images: engine.run({name_in: images, **fed})[first])


def _content(path: Path) -> bytes:
    """The bytes of a file of a kind that is known; raises InputError."""
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist; {_WANTED}")
        if not path.is_file():
            raise InputError(f"{path} is not a file; {_WANTED}")
        if path.suffix.lower() not in (".onnx", *_PLANS):
            raise InputError(f"{path} ends in {path.suffix or 'nothing'!r}; {_WANTED}")
        return path.read_bytes()
    except OSError as err:
        raise InputError(f"{path} cannot be read: {err}") from err


def _model(path: Path, data: bytes) -> Any:
    onnx = onnx_module()
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as err:  # protobuf's classes differ between its implementations
        raise InputError(f"{path} is not an ONNX model: {err}") from err
    if not model.graph.output:
        raise InputError(f"{path} is not an ONNX model: it has no outputs")
    return model


def _is_single_file(model: Any) -> bool:
    """Graphs of bundles are of this producer too, and have no such outputs."""
    outputs = {info.name for info in model.graph.output}
    return model.producer_name == PRODUCER and {"options", "macs"} <= outputs


def _inputs(model: Any) -> _Inputs:
    """Those that have to be fed: an initializer listed among them is a default."""
    types, defaults = onnx_module().TensorProto, {tensor.name for tensor in model.graph.initializer}
    inputs = {}
    for info in model.graph.input:
        kind = info.type.tensor_type
        dtype = types.DataType.Name(kind.elem_type).lower()
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
        if info.name not in defaults:
            inputs[info.name] = (
                "float32" if dtype == "float" else dtype,
                dims if kind.HasField("shape") else None,
            )
    return inputs


def _checked_input(path: Path, inputs: _Inputs, shape: tuple[int, ...], batch: int) -> str:
    """The name of the one input, which takes the run's batches; raises InputError."""
    if len(inputs) != 1:
        raise InputError(f"{path} has {len(inputs)} inputs, {sorted(inputs)}; a baseline takes images alone")
    ((name, (dtype, dims)),) = inputs.items()
    wanted = (batch, *shape)
    if dtype != "float32":
        raise InputError(f"{path}: its input {name!r} is {dtype}; images are float32")
    if dims is None:
        return name
    known = ["N" if dim is None else dim for dim in dims]
    if len(dims) != len(wanted) or any(d not in (None, s) for d, s in zip(dims[1:], shape, strict=True)):
        raise InputError(f"{path}: its input {name!r} is {known}; images are {['N', *shape]}")
    if dims[0] not in (None, batch):
        raise InputError(
            f"{path}: its input {name!r} takes batches of {dims[0]}, not of {batch}; time batches of that size, or "
            "export it with a batch axis that is free"
        )
    return name


def _onnx_engine(path: Path, data: bytes, opened: Opened, threads: int | None) -> Engine:
    memory: Any = opened.memory
    if opened.device == "cuda":
        from rnp_deploy.engines import ort_cuda

        return ort_cuda.opener(_File(path.parent, data), memory)(path.name)
    from rnp_deploy.engines import ort

    return ort.engine_from_onnx(data, path.parent, str(path), threads)


def _plan_engine(path: Path, data: bytes, opened: Opened) -> tuple[Engine, _Inputs]:
    from rnp_deploy.engines import trt
    from rnp_deploy.engines.trt_library import load_tensorrt

    if opened.device != "cuda":
        raise InputError(f"{path} is a plan of TensorRT, which runs on a GPU; time the controller there too")
    memory: Any = opened.memory
    try:
        engine: Any = trt.opener(_File(path.parent, data), load_tensorrt(flavor_of(opened)), memory)(
            path.name
        )
    except MissingRuntimeError:
        raise
    except EngineError as err:
        raise EngineError(f"{err}; a plan holds for the GPU and the TensorRT it was built with") from err
    inputs = {
        name: (str(dtype), [None if size < 0 else size for size in shape])
        for name, (shape, dtype) in engine.inputs.items()
    }
    return engine, inputs
