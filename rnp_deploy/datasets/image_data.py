"""Labelled images in two splits, held in memory or read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.errors import InputError

__all__ = ["ArrayImages", "Augment", "Colour", "ImageData", "LabelledImages", "spread_rows"]

Colour = Literal["L", "RGB", "BGR"]
#: From images ``[n, C, H, W]`` and seeds ``[n]`` to images of the same shape; see :mod:`.augmentation`.
Augment = Callable[[NDArray[np.float32], NDArray[np.uint64]], NDArray[np.float32]]


class LabelledImages(Protocol):
    """One split of a data set; picklable, so that the workers of a torch ``DataLoader`` can read it."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """``[N]``, 0..classes-1."""

    def __len__(self) -> int:
        """N."""

    def read(
        self, rows: NDArray[np.int64], seeds: NDArray[np.uint64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Some of the images, preprocessed, and their labels.

        Args:
            rows: ``[n]``, 0..N-1, in any order; at least one.
            seeds: ``[n]``; each augments its sample with draws that depend on this seed alone,
                not on the batch or the process. None: no augmentation.

        Returns:
            Images ``[n, C, H, W]`` and labels ``[n]``, the caller's own. The labels are those of
            the images read, which may stand in for others that cannot be.

        Raises:
            InputError: An image cannot be read.
        """


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory.

    Attributes:
        images: ``[N, C, H, W]``, preprocessed.
        labels: ``[N]``.
        augment: What ``read`` does to images it is given seeds for; None leaves them. A function of
            a module, or a ``functools.partial`` of one: it has to be picklable.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    augment: Augment | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.float32 or self.images.ndim != 4:
            raise InputError(
                f"images are {self.images.dtype} {self.images.shape}; pass float32 of shape (N, C, H, W)"
            )

    def __len__(self) -> int:
        return len(self.images)

    def read(
        self, rows: NDArray[np.int64], seeds: NDArray[np.uint64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As :meth:`LabelledImages.read`."""
        images = self.images[rows]
        if seeds is not None and self.augment is not None:
            images = self.augment(images, seeds)
        return images, self.labels[rows]


@dataclass(frozen=True)
class ImageData:
    """Labelled images in a train and a held-out test split.

    Attributes:
        train: What is learnt from.
        test: For reporting, never for choosing.
        classes: Their names, by label.
        preprocessing: How an image file becomes an input.
        name: Goes into checkpoints and bundles; holds no path.
        test_scans: ``[N, h, w]`` or ``[N, h, w, 3]`` uint8, the pixels ``test`` was made from,
            where they are to be written as files.
        skipped: Files that were left out, being unreadable.

    Raises:
        InputError: A split is empty, or its labels do not fit its images or the classes.
    """

    train: LabelledImages
    test: LabelledImages
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    name: str
    test_scans: NDArray[np.uint8] | None = None
    skipped: int = 0

    def __post_init__(self) -> None:
        made = (len(self.preprocessing.mean), *self.preprocessing.size)
        for name, split in (("train", self.train), ("test", self.test)):
            labels = split.labels
            if labels.dtype != np.int64 or labels.shape != (len(split),):
                raise InputError(
                    f"the {name} split has labels {labels.dtype} {labels.shape} for {len(split)} images; "
                    "pass int64, one an image"
                )
            if len(split) == 0:
                raise InputError(f"the {name} split is empty")
            if isinstance(split, ArrayImages) and split.images.shape[1:] != made:
                raise InputError(
                    f"the {name} split has images of shape {split.images.shape[1:]}, its preprocessing makes {made}"
                )
            wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
            if len(wrong):
                raise InputError(
                    f"the {name} split has label {labels[wrong[0]]} in row {wrong[0]}; "
                    f"labels of {len(self.classes)} classes are 0..{len(self.classes) - 1}"
                )


def spread_rows(images: Sized, most: int) -> NDArray[np.int64]:
    """At most so many rows, evenly taken."""
    count = min(len(images), most)
    return np.arange(count) * len(images) // count
