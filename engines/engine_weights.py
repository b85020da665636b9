"""The weights of an engine set: one file, mapped by every engine, each beginning stored once."""

from __future__ import annotations

import hashlib
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from rnp_deploy.bundle.manifest import WEIGHTS_FILE
from rnp_deploy.bundle.reading import Bundle

__all__ = ["BundleArrays", "EngineWeights"]

_ALIGNMENT = 64  # a cache line, and the widest vector load
_LEAST_BYTES = 1024  # smaller ones stay in the graph
_HEAD_BYTES = 256  # by which the beginnings of arrays are compared first

Array = NDArray[Any]


class BundleArrays:
    """Initializers of graphs whose external weights lie in a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self._weights = np.memmap(bundle.path / WEIGHTS_FILE, np.uint8, mode="r")

    def of(self, model: onnx.ModelProto) -> dict[str, Array]:
        """Every initializer by name; external ones are views of the mapped file."""
        return {tensor.name: self._array(tensor) for tensor in model.graph.initializer}

    def _array(self, tensor: onnx.TensorProto) -> Array:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return numpy_helper.to_array(tensor)
        where = {entry.key: entry.value for entry in tensor.external_data}
        start = int(where.get("offset", 0))
        data = self._weights[start : start + int(where["length"])]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return data.view(dtype).reshape(tuple(tensor.dims))


class EngineWeights:
    """Moves the large initializers of graphs into one file.

    In the blocked layout the weights of fewer output channels are the beginning of those of
    more: where the widest branch of a stage comes first, the others add nothing for them.

    Args:
        stream: Of the new file; the caller closes it.
        arrays: Of the graphs that are stored.
    """

    def __init__(self, stream: BinaryIO, arrays: BundleArrays) -> None:
        self._stream = stream
        self._arrays = arrays
        self._offsets: dict[bytes, int] = {}
        self._of_stage: dict[bytes, list[tuple[int, bytes]]] = {}

    def store(self, model: onnx.ModelProto) -> int:
        """Move the large initializers of a graph; they become external tensors. Bytes of all of them."""
        arrays = self._arrays.of(model)
        for tensor in model.graph.initializer:
            array = arrays[tensor.name]
            if array.nbytes < _LEAST_BYTES:
                stored = numpy_helper.from_array(array, tensor.name)
            else:
                stored = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=array.shape)
                stored.data_location = onnx.TensorProto.EXTERNAL
                place = {
                    "location": WEIGHTS_FILE,
                    "offset": self._add(array.tobytes()),
                    "length": array.nbytes,
                }
                for key, value in place.items():
                    stored.external_data.add(key=key, value=str(value))
            tensor.CopyFrom(stored)
        return sum(array.nbytes for array in arrays.values())

    def end_stage(self) -> None:
        """Forget the bytes of the stage before: no other stage's weights begin like them."""
        self._of_stage.clear()

    def _add(self, data: bytes) -> int:
        digest = hashlib.sha256(data).digest()
        if digest in self._offsets:
            return self._offsets[digest]
        alike = self._of_stage.setdefault(data[:_HEAD_BYTES], [])
        offset = next((start for start, longer in alike if longer.startswith(data)), None)
        if offset is None:
            self._stream.write(b"\0" * (-self._stream.tell() % _ALIGNMENT))
            offset = self._stream.tell()
            self._stream.write(data)
            alike.append((offset, data))
        self._offsets[digest] = offset
        return offset
