"""What a run is given, checked before anything runs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.errors import InputError

__all__ = ["checked_images", "checked_options", "checked_penalty"]


def checked_images(images: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A batch ``[N, C, H, W]``, C-contiguous, copied only where it is not; raises InputError.

    ``shape`` is ``[C, H, W]``.
    """
    wanted = f"float32 [N, {', '.join(map(str, shape))}]"
    if not isinstance(images, np.ndarray):
        raise InputError(f"images are a {type(images).__name__}; pass a numpy array, {wanted}")
    if images.dtype != np.float32 or images.ndim != len(shape) + 1 or images.shape[1:] != shape:
        raise InputError(f"images have shape {images.shape} and dtype {images.dtype}; pass {wanted}")
    if not len(images):
        raise InputError(f"images are an empty batch; pass at least one image, {wanted}")
    with np.errstate(over="ignore", invalid="ignore"):
        # Three times as fast as asking each value; an overflow of finite ones is looked into.
        suspicious = not math.isfinite(images.sum())
    if suspicious and not np.isfinite(images).all():
        bad = int(np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(axis=1))[0])
        raise InputError(f"image {bad} holds NaN or infinity; check the preprocessing")
    return np.ascontiguousarray(images)


def checked_options(options: ArrayLike | None, batch: int, manifest: Manifest) -> NDArray[np.int64]:
    """Options ``[N, T]``, a copy; zeros where None is given. Raises InputError."""
    shape = (batch, len(manifest.decisions))
    if options is None:
        return np.zeros(shape, np.int64)
    try:
        given = np.asarray(options)
    except ValueError as err:
        raise InputError(f"options are ragged; pass integers of shape {shape}") from err
    if given.shape != shape or given.dtype.kind not in "iu":
        raise InputError(
            f"options have shape {given.shape} and dtype {given.dtype}; "
            f"pass integers of shape {shape}: one per image and decision"
        )
    counts = manifest.option_counts
    if given.min() < 1 or (given > counts).any():
        raise InputError(
            f"options range over {given.min()}..{given.max()}; this network takes 1..{manifest.groups}"
            + ("" if len(set(counts)) == 1 else f", by decision 1..{counts}")
        )
    return given.astype(np.int64)


def checked_penalty(penalty: ArrayLike | None, batch: int, manifest: Manifest) -> NDArray[np.float32]:
    """Prices ``[N]``; the agent's own where None is given. Raises InputError."""
    try:
        given = np.asarray(manifest.agent.penalty if penalty is None else penalty)
        if given.dtype.kind not in "fiu":
            raise InputError(f"penalty is {penalty!r}; pass one number, or one per image")
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused below
            prices = np.ascontiguousarray(np.broadcast_to(given, (batch,)), np.float32)
    except ValueError as err:
        raise InputError(f"penalty is {penalty!r}; pass one number, or one per image") from err
    if not np.isfinite(prices).all():
        raise InputError("penalty is not finite; pass one number, or one per image")
    return prices
