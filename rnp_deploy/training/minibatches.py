"""Shuffled, distorted minibatches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["distort_images", "minibatches"]


def minibatches(
    images: Tensor, labels: Tensor, batch_size: int, distortion: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled minibatches for ever, drawn from torch's global random state.

    Args:
        images: ``[N, C, H, W]``.
        labels: ``[N]``.
        batch_size: Samples in each; at most N are taken. An epoch's incomplete rest is
            dropped, since batch norm cannot train on a single sample.
        distortion: See :func:`distort_images`.
    """
    batch_size = min(batch_size, len(images))
    while True:
        order = torch.randperm(len(images))
        for rows in order[: len(order) // batch_size * batch_size].split(batch_size):
            yield distort_images(images[rows], distortion), labels[rows]


def distort_images(images: Tensor, distortion: float) -> Tensor:
    """Make each image anew under its own random affine map.

    Hard samples are what the agent learns from: where every option classifies every image,
    none is worth its price.

    Args:
        images: ``[N, C, H, W]``.
        distortion: Every entry of the 2x3 affine matrix moves by up to this much; half of H
            and W is 1.
    """
    theta = torch.eye(2, 3) + distortion * (2 * torch.rand(len(images), 2, 3) - 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
