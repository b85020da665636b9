"""How tensors of each type lie in numpy's memory."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["storage_dtype"]


def storage_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a tensor's type; bfloat16, which numpy lacks, lies as its bits in uint16."""
    return np.dtype(np.uint16 if name == "bfloat16" else name)
