"""Data sets by name: labelled images, preprocessed and split for good."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.errors import InputError, MissingRuntimeError
from rnp_deploy.preprocessing import image_array

__all__ = ["ImageData", "load_data", "write_sample_images"]

_TEST_SHARE = 0.25
# Never the training seed: accuracies of different runs are to be of the same images.
_SPLIT_SEED = 0


@dataclass(frozen=True)
class ImageData:
    """Labelled images, preprocessed, in a train and a held-out test split.

    Attributes:
        train_images: ``[N, C, H, W]`` float32.
        train_labels: ``[N]`` int64, 0..len(classes)-1.
        test_images: As ``train_images``; for reporting, never for choosing.
        test_labels: As ``train_labels``.
        classes: Their names.
        preprocessing: How an image file becomes an input.
        name: What :func:`load_data` knows it by.
        test_scans: ``[N, h, w]`` uint8, the pixels ``test_images`` were made from, where
            they are to be written as files.
    """

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    name: str
    test_scans: NDArray[np.uint8] | None = None


def load_data(
    name: str, size: tuple[int, int] = (16, 16), colour: Literal["L", "RGB", "BGR"] = "L"
) -> ImageData:
    """Load a data set by name, for networks that take images of this (H, W) and colour.

    ``digits`` is scikit-learn's copy of the UCI handwritten digits: 1797 scans of 8x8
    pixels, a stratified quarter of them held out; the split is always the same.

    Raises:
        InputError: No data set of this name.
        MissingRuntimeError: scikit-learn or Pillow is not installed.
    """
    if name != "digits":
        raise InputError(f"there is no data set {name!r}; known: digits")
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        scans, labels = load_digits(return_X_y=True)
        pixels = np.round(scans.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
        train, test, train_labels, test_labels = train_test_split(
            pixels, labels.astype(np.int64), test_size=_TEST_SHARE, random_state=_SPLIT_SEED, stratify=labels
        )
        channels = 1 if colour == "L" else 3
        plain = Preprocessing(colour=colour, size=size, mean=(0.0,) * channels, std=(1.0,) * channels)
        raw = _inputs(train, plain)
        preprocessing = Preprocessing(
            colour=colour,
            size=size,
            mean=(round(float(raw.mean()), 4),) * channels,
            std=(round(float(raw.std()), 4),) * channels,
        )
        return ImageData(
            train_images=_inputs(train, preprocessing),
            train_labels=train_labels,
            test_images=_inputs(test, preprocessing),
            test_labels=test_labels,
            test_scans=test,
            classes=tuple(str(digit) for digit in range(10)),
            preprocessing=preprocessing,
            name=name,
        )
    except ImportError as err:
        raise MissingRuntimeError(
            f"the data set {name!r} needs scikit-learn and Pillow ({err}); pip install rnp-deploy[train]"
        ) from err


def write_sample_images(data: ImageData, folder: str | Path, count: int = 12) -> tuple[Path, ...]:
    """Write the first held-out scans as PNG files, pixel for pixel.

    Read through ``data.preprocessing`` each gives its row of ``data.test_images`` exactly.

    Args:
        data: From :func:`load_data`.
        folder: Made if missing; files of the same names are replaced.
        count: How many; at most all are written.

    Returns:
        The paths, named ``<row>-digit-<class>.png``, in order of rows.

    Raises:
        InputError: The folder cannot be written.
    """
    from PIL import Image

    if data.test_scans is None:
        raise InputError(f"the data set {data.name!r} has no scans to write")
    folder = Path(folder)
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for row, (scan, label) in enumerate(zip(data.test_scans[:count], data.test_labels, strict=False)):
            paths.append(folder / f"{row:04d}-digit-{data.classes[int(label)]}.png")
            Image.fromarray(scan).save(paths[-1])
    except OSError as err:
        raise InputError(f"sample images cannot be written to {folder}: {err}") from err
    return tuple(paths)


def _inputs(scans: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    from PIL import Image

    return np.stack([image_array(Image.fromarray(scan), preprocessing) for scan in scans])
