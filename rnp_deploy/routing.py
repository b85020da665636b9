"""Tensors of a batch whose samples took different branches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.array_memory import HOST, ArrayMemory

__all__ = ["RoutedTensor", "Rows", "rows_by_options"]

#: Indices of samples of a batch.
Rows: TypeAlias = NDArray[np.intp]


class RoutedTensor:
    """The rows of one tensor, in as many arrays as branches made it.

    Args:
        batch: N.
        memory: Where its arrays lie.
    """

    def __init__(self, batch: int, memory: ArrayMemory = HOST) -> None:
        self._memory = memory
        self._arrays: list[NDArray[Any]] = []
        self._part = np.zeros(batch, np.intp)
        self._position = np.zeros(batch, np.intp)

    def put(self, rows: Rows, array: NDArray[Any]) -> None:
        """Give the samples ``rows`` their rows of ``array``; the array is kept, not copied."""
        self._part[rows] = len(self._arrays)
        self._position[rows] = np.arange(len(rows))
        self._arrays.append(array)

    def take(self, rows: Rows) -> NDArray[Any]:
        """The rows of these samples, in their order; they must be of one width.

        No copy is made where ``rows`` are neighbours in one array, in its order.
        """
        parts, positions = self._part[rows], self._position[rows]
        first: NDArray[Any] = self._arrays[parts[0]]
        start = int(positions[0])
        if (parts == parts[0]).all() and (positions == np.arange(start, start + len(rows))).all():
            return first[start : start + len(rows)]
        gathered: NDArray[Any] = self._memory.empty((len(rows), *first.shape[1:]), first.dtype)
        for part in np.unique(parts):
            here = np.flatnonzero(parts == part)
            self._memory.copy_rows(self._arrays[part], positions[here], gathered, here)
        return gathered


def rows_by_options(options: NDArray[np.int64]) -> Iterator[tuple[Rows, tuple[int, ...]]]:
    """Group samples that take the same branch.

    Args:
        options: ``[N, M]``, one column per decision the stage depends on.

    Yields:
        Sample indices, ascending, and their common options.
    """
    every = np.arange(len(options))
    if (options == options[0]).all():
        yield every, tuple(int(option) for option in options[0])
        return
    kinds, kind_of_row = np.unique(options, axis=0, return_inverse=True)
    for kind, common in enumerate(kinds):
        yield every[kind_of_row.reshape(-1) == kind], tuple(int(option) for option in common)
