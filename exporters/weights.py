"""``weights.bin``: every weight of a bundle once, whatever number of graphs refer to it."""

from __future__ import annotations

import hashlib
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from rnp_deploy.bundle.manifest import WEIGHTS_FILE

__all__ = ["WeightFile"]

_ALIGNMENT = 64  # a cache line, and the widest vector load


class WeightFile:
    """Writes arrays one after another and tells where they lie.

    Equal arrays are stored once. Offsets are multiples of 64 bytes.

    Args:
        stream: Of the new file; the caller closes it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offsets: dict[tuple[str, bytes], int] = {}

    def add(self, name: str, array: NDArray[Any]) -> ir.ExternalTensor:
        """Store ``array`` (little-endian, C order) and return a tensor that refers to it."""
        data = np.ascontiguousarray(array)
        raw = data.view(np.uint8)  # not every type of numbers is one of Python's buffers
        key = (data.dtype.name, hashlib.sha256(raw.data).digest())
        if key not in self._offsets:
            self._stream.write(b"\0" * (-self._stream.tell() % _ALIGNMENT))
            self._offsets[key] = self._stream.tell()
            self._stream.write(raw.data)
        return ir.ExternalTensor(
            WEIGHTS_FILE,
            self._offsets[key],
            data.nbytes,
            ir.DataType.from_numpy(data.dtype),
            shape=ir.Shape(array.shape),
            name=name,
        )
