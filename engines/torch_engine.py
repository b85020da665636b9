"""Torch: the graphs of a bundle on any torch device, on CUDA each bound call as a CUDA graph.

What is for CUDA here awaits its first run on hardware.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from rnp_deploy.dtypes import storage_dtype
from rnp_deploy.engine import AnyArray, Arrays, OpenEngine
from rnp_deploy.engines.cuda_memory import DeviceArray
from rnp_deploy.engines.ort import GraphSource
from rnp_deploy.errors import DeviceError, EngineError, InputError, MissingRuntimeError

try:
    import torch
    from torch import Tensor

    from rnp_deploy.engines.torch_graph import Edge, TorchGraph, Weights
except ImportError as err:
    raise MissingRuntimeError("torch or onnx is not installed; pip install 'rnp-deploy[torch]'") from err

__all__ = ["TorchEngine", "device_of", "opener"]

_process = threading.Lock()  # torch's settings are the process's, and it captures one CUDA graph at a time


class TorchEngine:
    """One graph as torch functions.

    Args:
        graph: On the device of ``place``.
        place: Where it is run.
        where: Names it in errors.
    """

    def __init__(self, graph: TorchGraph, place: Place, where: str) -> None:
        self._graph: TorchGraph | None = graph
        self._place = place
        self._where = where
        place.own_bytes[self] = graph.own_bytes

    def run(self, feeds: Arrays) -> Arrays:
        """See :meth:`rnp_deploy.engine.Engine.run`; of arrays of the device it gives such arrays."""
        graph = self._opened("run")
        with _errors(self._where, "torch failed", self._place), self._place.current(), self._place.exact():
            tensors = _tensors(feeds, graph.inputs, self._place.device)
            inputs = [tensors[edge.name].to(self._place.device) for edge in graph.inputs]
            made = zip(graph.outputs, graph(inputs), strict=True)
            if any(isinstance(array, DeviceArray) for array in feeds.values()):
                return {edge.name: _device_array(tensor) for edge, tensor in made}
            return {edge.name: _array(tensor) for edge, tensor in made}

    def bind(self, inputs: Arrays, outputs: Arrays) -> Callable[[], None]:
        """See :meth:`rnp_deploy.engine.Engine.bind`.

        Arrays may be numpy's, or offer ``__cuda_array_interface__`` (bfloat16 as uint16). The call's
        work is done, and in numpy's arrays, when it returns where an output is numpy's; else it is on
        its way in the stream.
        """
        graph = self._opened("bound")
        place = self._place
        with _errors(self._where, "torch cannot bind it", place), place.current():
            fed = _tensors(inputs, graph.inputs, place.device)
            wanted = _tensors(outputs, graph.outputs, place.device, written=True)
            uploads = place.staged(fed)
            downloads = [(near, place.pinned(host), host) for near, host in place.staged(wanted)]
        sources = [fed[edge.name] for edge in graph.inputs]
        targets = [(i, wanted[edge.name]) for i, edge in enumerate(graph.outputs) if edge.name in wanted]

        def compute() -> None:
            made = graph(sources)
            for i, target in targets:
                if made[i].shape != target.shape:
                    raise ValueError(
                        f"{graph.outputs[i].name!r} is {list(made[i].shape)}; its array {list(target.shape)}"
                    )
                target.copy_(made[i])

        return _bound_call(compute, uploads, downloads, (place, self._where, inputs, outputs))

    def close(self) -> None:
        """Drop the graph."""
        self._graph = None
        self._place.own_bytes.pop(self, None)

    def _opened(self, what: str) -> TorchGraph:
        if self._graph is None:
            raise EngineError(f"{self._where} was {what} after close")
        return self._graph


class Place:
    """A device on which the engines of one opener compute.

    Attributes:
        device: torch's.
        weights: Of the bundle.
        own_bytes: Open engine → bytes of weights it holds besides those.
    """

    def __init__(self, device: torch.device, folder: Path) -> None:
        self.device = device
        self.weights = Weights(folder, device)
        self.own_bytes: weakref.WeakKeyDictionary[TorchEngine, int] = weakref.WeakKeyDictionary()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """What is computed in this block is computed here."""
        with torch.inference_mode():
            yield

    def exact(self) -> contextlib.AbstractContextManager[Any]:
        """What is computed in this block has the precision of its types."""
        return contextlib.nullcontext()

    def reaches(self, tensor: Tensor) -> bool:
        """Whether a graph can read and write a tensor where it is."""
        return tensor.device.type == self.device.type

    def staged(self, tensors: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Put tensors of the device in the place of those that it does not reach; each pair, the host's second."""
        hosts = {name: host for name, host in tensors.items() if not self.reaches(host)}
        tensors.update({name: torch.empty_like(host, device=self.device) for name, host in hosts.items()})
        return [(tensors[name], host) for name, host in hosts.items()]

    def pinned(self, host: Tensor) -> Tensor:
        """Memory that the device copies to by itself, like that of ``host``, or ``host``."""
        return host

    def first_call(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Compute; what later calls are to do."""
        compute()
        return compute

    def synchronize(self) -> None:
        """Wait until all is done."""


class CudaPlace(Place):
    """A GPU: one stream, in which one call runs after another, and memory that their CUDA graphs share.

    Args:
        device: torch's.
        folder: Of the weights.
        stream: The address of a CUDA stream that is not the default one, or None for a new one.
    """

    def __init__(self, device: torch.device, folder: Path, stream: int | None) -> None:
        super().__init__(device, folder)
        self._stream = (
            torch.cuda.Stream(device) if stream is None else torch.cuda.ExternalStream(stream, device)
        )
        self._pool = torch.cuda.graph_pool_handle()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """One thread at a time: the graphs share their memory."""
        with self._lock, torch.inference_mode(), torch.cuda.stream(self._stream):
            yield

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """Without TF32, and sums of float16 and bfloat16 in float32; for the whole process, as long as this lasts."""
        cublas, cudnn = torch.backends.cuda.matmul, cast("Any", torch.backends.cudnn)
        wanted = [
            (cublas, "fp32_precision", "ieee"),  # reading allow_tf32 fails where the caller has set this
            (cudnn.conv, "fp32_precision", "ieee"),
            (cublas, "allow_fp16_reduced_precision_reduction", False),
            (cublas, "allow_bf16_reduced_precision_reduction", False),
        ]
        with _process:
            before = [getattr(library, name) for library, name, _ in wanted]
            try:
                for library, name, value in wanted:
                    setattr(library, name, value)
                yield
            finally:
                for (library, name, _), value in zip(wanted, before, strict=True):
                    setattr(library, name, value)

    def pinned(self, host: Tensor) -> Tensor:
        """Page-locked."""
        return torch.empty_like(host, pin_memory=True)

    def first_call(self, compute: Callable[[], None]) -> Callable[[], None]:
        """Compute, which lets cuDNN and cuBLAS set themselves up, and capture the same as a CUDA graph."""
        with self.exact():
            compute()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with self.exact():
            graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                compute()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # of a capture that is void
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()


def opener(
    source: GraphSource, device: str = "auto", threads: int | None = None, *, stream: int | None = None
) -> OpenEngine:
    """Make the function that opens the graphs of a bundle.

    Its weights are on the device once, all of them from the first engine on; an engine adds those that
    it takes a cut of in another axis than the first.

    Args:
        source: A verified bundle; an engine set's graphs are ONNX Runtime's own.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or another device of torch; ``"auto"`` is CUDA where it works.
        threads: Threads that torch computes with on the CPU, in all of the process; None leaves them as they are.
        stream: The address of a CUDA stream, not the default one, in which all is done; None makes one.

    Raises:
        InputError: ``threads`` is below 1.
        EngineError: There is no such device; a DeviceError says why it cannot be used here.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads is {threads!r}; pass an integer of at least 1, or None to leave torch's")
    chosen = device_of(device)
    place = CudaPlace(chosen, source.path, stream) if chosen.type == "cuda" else Place(chosen, source.path)
    if threads is not None:
        torch.set_num_threads(threads)

    def open_engine(path: str) -> TorchEngine:
        where = f"{source.path}/{path}"
        with _errors(where, "torch failed", place), place.current():
            graph = TorchGraph(source.graph(path), place.weights, place.device, where)
            place.synchronize()
        source.check_unchanged()  # after its weights were read or mapped
        return TorchEngine(graph, place, where)

    return open_engine


def device_of(name: str) -> torch.device:
    """Torch's device of a name, ``"auto"`` included; raises DeviceError where it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as err:
        raise EngineError(f"device {name!r} is none of torch's; use 'cpu', 'cuda' or 'auto'") from err
    if device.type == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        reason = (
            f"torch {torch.__version__} was built without CUDA; install a build with it"
            if built is None
            else f"torch {torch.__version__} is for CUDA {built}, and finds no GPU or a driver too old: see nvidia-smi"
        )
        raise DeviceError(f"device {name!r} cannot be used: {reason}; or use 'cpu'")
    try:
        torch.empty(0, device=device)
    except Exception as err:  # torch raises errors of many classes
        raise DeviceError(f"device {name!r} cannot be used: {err}") from err
    return device


def _bound_call(
    compute: Callable[[], None],
    uploads: Sequence[tuple[Tensor, Tensor]],
    downloads: Sequence[tuple[Tensor, Tensor, Tensor]],
    kept: Any,
) -> Callable[[], None]:
    place, where = kept[:2]
    later: Callable[[], None] | None = None

    def call() -> None:
        nonlocal later
        with _errors(where, "torch failed", place), place.current():
            for near, host in uploads:
                near.copy_(host)
            if later is None:
                later = place.first_call(compute)
            else:
                later()
            for near, pinned, _ in downloads:
                pinned.copy_(near, non_blocking=True)
            if downloads:
                place.synchronize()
            for _, pinned, host in downloads:
                if pinned is not host:
                    host.copy_(pinned)

    return call


def _tensors(
    arrays: Arrays, edges: Sequence[Edge], device: torch.device, *, written: bool = False
) -> dict[str, Tensor]:
    """Arrays as tensors on their memory: inputs, or outputs to be ``written``, which may be fewer."""
    known = {edge.name: edge for edge in edges}
    wanted = arrays if written else dict.fromkeys([*arrays, *known])
    tensors = {}
    for name in wanted:
        if name not in known:
            raise ValueError(f"it has no tensor {name!r} there, but {sorted(known)}")
        tensors[name] = _tensor(arrays.get(name), known[name], device, written=written)
    return tensors


def _tensor(array: Any, edge: Edge, device: torch.device, *, written: bool) -> Tensor:
    name, dtype = edge.name, storage_dtype(str(edge.dtype).removeprefix("torch."))
    if isinstance(array, np.ndarray):
        if written and not array.flags.writeable:
            raise ValueError(f"the array of {name!r} is read-only")
        if array.dtype != dtype:
            raise ValueError(f"the array of {name!r} is a {array.dtype}; it takes a {dtype}")
        tensor = torch.from_numpy(np.asarray(_Writeable(array)))
    elif hasattr(array, "__cuda_array_interface__"):
        tensor = torch.as_tensor(array, device=device)
        if tensor.data_ptr() != array.__cuda_array_interface__["data"][0]:
            raise ValueError(f"the array of {name!r} does not lie on {device}")
        if tensor.dtype != (torch.uint16 if edge.dtype == torch.bfloat16 else edge.dtype):
            raise ValueError(f"the array of {name!r} is a {tensor.dtype}; it takes a {dtype}")
    else:
        raise TypeError(f"{name!r} is given no array")
    if not tensor.is_contiguous():
        raise ValueError(f"the array of {name!r} is not C-contiguous")
    if len(edge.sizes) != tensor.dim() or any(
        size not in (None, given) for size, given in zip(edge.sizes, tensor.shape, strict=True)
    ):
        raise ValueError(f"the array of {name!r} is {list(tensor.shape)}; it takes {list(edge.sizes)}")
    return tensor.view(edge.dtype)


class _Writeable:
    """The memory of an array that is read only, as torch takes it without a warning."""

    def __init__(self, array: AnyArray) -> None:
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
        self._array = array


def _device_array(tensor: Tensor) -> Any:
    """The tensor's own memory, which it holds; of the stream that computed it."""
    tensor = tensor.contiguous()
    dtype = storage_dtype(str(tensor.dtype).removeprefix("torch."))
    return DeviceArray(tensor.data_ptr(), tuple(tensor.shape), dtype, tensor)


def _array(tensor: Tensor) -> AnyArray:
    """A copy that is the caller's: a tensor may be a view of a weight, an input or another output."""
    copied = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
    array: AnyArray = (copied.view(torch.uint16) if copied.dtype == torch.bfloat16 else copied).numpy()
    return array


@contextlib.contextmanager
def _errors(where: str, doing: str, place: Place) -> Iterator[None]:
    """Raise what torch raises as EngineError; ``where`` and ``doing`` are said."""
    try:
        yield
    except EngineError:
        raise
    except torch.OutOfMemoryError as err:
        own = sum(place.own_bytes.values()) + place.weights.nbytes
        raise EngineError(
            f"{where}: {place.device} has no memory left, {len(place.own_bytes)} engines being open with weights "
            f"of {own / 2**20:.0f} MiB; try a smaller batch, memory_budget_bytes, or a bundle exported with "
            f"branches='outputs': {err}"
        ) from err
    except Exception as err:  # torch raises errors of many classes
        raise EngineError(f"{where}: {doing}: {err}") from err
