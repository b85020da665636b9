"""Where the tensors between pieces lie: on the host, or on a device that engines read and write directly."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["HOST", "ArrayMemory", "HostMemory"]


class ArrayMemory(Protocol):
    """Makes arrays and moves what is in them; on a device in the order of one stream.

    An array is a numpy array, or of a device's memory a value that has ``shape``, ``dtype``,
    slices of axis 0, ``view`` and ``reshape`` like one. It holds its memory.
    """

    @property
    def on_host(self) -> bool:
        """Whether arrays are plain numpy arrays."""

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Any:
        """A new array, C-contiguous, not cleared; raises DeviceError where memory is short."""

    def host_empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """A numpy array that the device copies to without a detour; not cleared."""

    def write(self, array: Any, value: ArrayLike) -> None:
        """Copy host values into an array of here; a scalar fills it."""

    def to_host(self, array: Any) -> NDArray[Any]:
        """What an array holds once all work so far is done; the array itself where it lies on the host."""

    def copy_rows(
        self, source: Any, rows: NDArray[np.intp], target: Any, target_rows: NDArray[np.intp]
    ) -> None:
        """``target[target_rows] = source[rows]``, of arrays of here and of one row shape."""

    def synchronise(self) -> None:
        """Wait until all work so far is done."""

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """What engines are opened, run and closed within: on a device one thread at a time."""


class HostMemory:
    """Numpy arrays. Any number of threads at once."""

    on_host = True

    def empty(self, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
        """See :class:`ArrayMemory`."""
        return np.empty(shape, dtype)

    host_empty = empty

    def write(self, array: NDArray[Any], value: ArrayLike) -> None:
        """See :class:`ArrayMemory`."""
        np.copyto(array, value)

    def to_host(self, array: NDArray[Any]) -> NDArray[Any]:
        """See :class:`ArrayMemory`."""
        return array

    def copy_rows(
        self,
        source: NDArray[Any],
        rows: NDArray[np.intp],
        target: NDArray[Any],
        target_rows: NDArray[np.intp],
    ) -> None:
        """See :class:`ArrayMemory`."""
        target[target_rows] = source[rows]

    def synchronise(self) -> None:
        """All is done when it was asked for."""

    def turn(self) -> contextlib.AbstractContextManager[None]:
        """See :class:`ArrayMemory`."""
        return contextlib.nullcontext()


HOST = HostMemory()
