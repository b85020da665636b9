"""Random changes to training images; what a sample gets depends on its own seed alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["affine", "crop_and_flip", "random_resized_crop", "uniform"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TRIES = 10


def uniform(seeds: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Draws in [0, 1), ``[N, count]``, row i from ``seeds[i]`` ``[N]`` alone.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) over the column, from a mixed seed, so that
    seeds that follow one another share nothing.
    """
    columns = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_mixed(_mixed(seeds)[:, None] + columns) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def affine(
    images: NDArray[np.float32], seeds: NDArray[np.uint64], amount: float = 0.2
) -> NDArray[np.float32]:
    """Make each image anew under its own affine map, its border continued outwards.

    Args:
        images: ``[N, C, H, W]``.
        seeds: ``[N]``.
        amount: Every entry of the 2x3 matrix moves by up to this much; half of H and W is 1.
    """
    import torch

    height, width = images.shape[2:]
    matrix = np.eye(2, 3) + amount * (2 * uniform(seeds, 6).reshape(-1, 2, 3) - 1)
    x = (2 * np.arange(width) + 1) / width - 1
    y = (2 * np.arange(height)[:, None] + 1) / height - 1
    m = matrix[:, :, :, None, None]
    grid = m[:, :, 0] * x + m[:, :, 1] * y + m[:, :, 2]  # [N, 2, H, W]; no matmul, whose sums vary with N
    moved = torch.nn.functional.grid_sample(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(np.ascontiguousarray(grid.transpose(0, 2, 3, 1), np.float32)),
        padding_mode="border",
        align_corners=False,
    )
    return np.asarray(moved.numpy(), np.float32)


def crop_and_flip(
    images: NDArray[np.float32], seeds: NDArray[np.uint64], padding: int = 4
) -> NDArray[np.float32]:
    """Shift each image by up to ``padding`` pixels along H and W, and mirror half of them.

    What comes in at the border is the image's own reflection, since zeros would be another colour
    under every mean.

    Args:
        images: ``[N, C, H, W]``.
        seeds: ``[N]``.
        padding: Pixels.
    """
    count, channels, height, width = images.shape
    u = uniform(seeds, 3)[:, :, None]  # [N, 3, 1]
    rows = np.arange(height) + (u[:, 0] * (2 * padding + 1)).astype(np.int64)  # [N, H]
    columns = np.where(u[:, 2] < 0.5, np.arange(width)[::-1], np.arange(width))
    columns = columns + (u[:, 1] * (2 * padding + 1)).astype(np.int64)  # [N, W]
    around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    sample, channel = np.arange(count)[:, None, None, None], np.arange(channels)[:, None, None]
    padded = np.pad(images, around, mode="reflect")
    return np.asarray(padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]])


def random_resized_crop(
    seeds: NDArray[np.uint64],
    sizes: NDArray[np.int64],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Boxes to cut out of images and resize, and which to mirror (Szegedy et al., arXiv:1409.4842).

    Args:
        seeds: ``[N]``.
        sizes: ``[N, 2]``, (height, width) of each image, in pixels.
        scale: Least and largest area, as a share of the image's.
        ratio: Least and largest width ÷ height; drawn evenly in its logarithm.

    Returns:
        Boxes ``[N, 4]`` (left, upper, right, lower) in pixels: the first of 10 draws that fits the
        image, else the largest of such a ratio in its middle; and flips ``[N]``.
    """
    u = uniform(seeds, 4 * _TRIES + 1)
    area, shape, down, along = u[:, :-1].reshape(-1, 4, _TRIES).swapaxes(0, 1)  # each [N, tries]
    height, width = sizes[:, :1], sizes[:, 1:]
    low, high = np.log(ratio)
    side = np.sqrt(height * width * (scale[0] + (scale[1] - scale[0]) * area))
    stretch = np.exp((low + (high - low) * shape) / 2)
    h, w = np.rint(side / stretch).astype(np.int64), np.rint(side * stretch).astype(np.int64)
    fits = (h > 0) & (w > 0) & (h <= height) & (w <= width)
    whole_h = np.clip(np.rint(width / ratio[0]).astype(np.int64), 1, height)
    whole_w = np.clip(np.rint(height * ratio[1]).astype(np.int64), 1, width)
    h, w = np.where(fits, h, whole_h), np.where(fits, w, whole_w)
    top = np.where(fits, (down * (height - h + 1)).astype(np.int64), (height - h) // 2)
    left = np.where(fits, (along * (width - w + 1)).astype(np.int64), (width - w) // 2)
    first = fits.argmax(axis=1)[:, None]  # the first draw where none fits: it holds the middle
    boxes = np.stack([left, top, left + w, top + h], axis=-1)
    return np.take_along_axis(boxes, first[:, :, None], axis=1)[:, 0], u[:, -1] < 0.5
