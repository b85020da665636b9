"""How tensors of each type lie in numpy's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_float32", "storage_dtype"]


def storage_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a tensor's type; bfloat16, which numpy lacks, lies as its bits in uint16."""
    return np.dtype(np.uint16 if name == "bfloat16" else name)


def as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers of a tensor, those that lie as bfloat16 too; no copy where they are float32."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)
