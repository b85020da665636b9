"""Scikit-learn's copy of the UCI handwritten digits, and held-out scans as files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.datasets.augmentation import affine
from rnp_deploy.datasets.image_data import ArrayImages, Colour, ImageData
from rnp_deploy.errors import InputError
from rnp_deploy.preprocessing import image_array, make_preprocessing

__all__ = ["load_digits", "write_sample_images"]

_TEST_SHARE = 0.25
# Never the training seed: accuracies of different runs are to be of the same images.
_SPLIT_SEED = 0


def load_digits(
    size: tuple[int, int] | None = None,
    colour: Colour | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> ImageData:
    """1797 scans of 8x8 pixels, a stratified quarter of them held out; see :func:`load_data`."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    scans, labels = datasets.load_digits(return_X_y=True)
    pixels = np.round(scans.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    train, test, train_labels, test_labels = train_test_split(
        pixels, labels.astype(np.int64), test_size=_TEST_SHARE, random_state=_SPLIT_SEED, stratify=labels
    )
    channels = 3 if colour in ("RGB", "BGR") else 1
    fields = {"colour": colour or "L", "size": size or (16, 16)}
    raw = _inputs(train, make_preprocessing(**fields, mean=(0.0,) * channels, std=(1.0,) * channels))
    preprocessing = make_preprocessing(
        **fields,
        mean=mean or (round(float(raw.mean()), 4),) * channels,
        std=std or (round(float(raw.std()), 4),) * channels,
    )
    return ImageData(
        train=ArrayImages(_inputs(train, preprocessing), train_labels, affine),
        test=ArrayImages(_inputs(test, preprocessing), test_labels),
        test_scans=test,
        classes=tuple(str(digit) for digit in range(10)),
        preprocessing=preprocessing,
        name="digits",
    )


def write_sample_images(data: ImageData, folder: str | Path, count: int = 12) -> tuple[Path, ...]:
    """Write the first held-out scans as PNG files, pixel for pixel.

    Read through ``data.preprocessing`` each gives its row of ``data.test`` exactly.

    Args:
        data: From :func:`load_data`.
        folder: Made if missing; files of the same names are replaced.
        count: How many; at most all are written.

    Returns:
        The paths, in order of rows: ``<row>-digit-<class>.png``, or ``<row>-<name>-<class>.png``
        with what is no letter, digit or hyphen replaced by ``_``.

    Raises:
        InputError: The data has no scans, or the folder cannot be written.
    """
    from PIL import Image

    if data.test_scans is None:
        raise InputError(f"the data set {data.name!r} has no scans to write")
    folder, kind = Path(folder), data.name.removesuffix("s")
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for row, (scan, label) in enumerate(zip(data.test_scans[:count], data.test.labels, strict=False)):
            name = re.sub(r"[^\w-]", "_", f"{kind}-{data.classes[label]}")
            paths.append(folder / f"{row:04d}-{name}.png")
            Image.fromarray(scan).save(paths[-1])
    except OSError as err:
        raise InputError(f"sample images cannot be written to {folder}: {err}") from err
    return tuple(paths)


def _inputs(scans: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    from PIL import Image

    return np.stack([image_array(Image.fromarray(scan), preprocessing) for scan in scans])
