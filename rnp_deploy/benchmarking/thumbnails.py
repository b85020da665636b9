"""Pictures of the cheapest and the dearest images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.report import ImageReport
from rnp_deploy.benchmarking.statistics import classes_of
from rnp_deploy.bundle.manifest import Manifest, Preprocessing
from rnp_deploy.errors import MissingRuntimeError

__all__ = ["image_reports", "thumbnail"]


def image_reports(
    images: NDArray[np.float32],
    labels: NDArray[np.integer[Any]] | None,
    options: NDArray[np.integer[Any]],
    macs: NDArray[np.integer[Any]],
    outputs: NDArray[np.floating[Any]],
    manifest: Manifest,
    most: int = 8,
) -> tuple[tuple[ImageReport, ...], tuple[ImageReport, ...]]:
    """The cheapest images, cheapest first, and the dearest, dearest first; no image is in both.

    Args:
        images: ``[N, C, H, W]``, as the network took them.
        labels: ``[N]``, or None.
        options: ``[N, T]``, what was decided.
        macs: ``[N]``, what each image cost.
        outputs: ``[N, …]``, of which the largest is the class.
        manifest: Names the classes, and says how images were prepared.
        most: Images in a list; of fewer than twice as many, each list has half. Of images that cost the same
            the first come first.

    Returns:
        Without thumbnails where Pillow is not installed.
    """
    predicted = classes_of(outputs)

    def report(i: int) -> ImageReport:
        picture = None
        with suppress(MissingRuntimeError):
            picture = thumbnail(images[i], manifest.preprocessing)
        return ImageReport(
            index=i,
            macs_share=int(macs[i]) / manifest.macs,
            options=tuple(options[i].tolist()),
            predicted=_class_name(int(predicted[i]), manifest.classes),
            label=None if labels is None else _class_name(int(labels[i]), manifest.classes),
            thumbnail=picture,
        )

    half = (len(images) + 1) // 2
    cheapest = np.argsort(macs, kind="stable")[: min(most, half)].tolist()
    left = [i for i in np.argsort(-macs.astype(np.int64), kind="stable").tolist() if i not in cheapest]
    return tuple(map(report, cheapest)), tuple(map(report, left[:most]))


def thumbnail(image: NDArray[np.float32], preprocessing: Preprocessing | None, most: int = 96) -> str:
    """A network input as a PNG in base64.

    Args:
        image: ``[C, H, W]``; of other than one or three channels the first is shown.
        preprocessing: What is undone. None: the least value is shown black, the greatest white.
        most: Pixels of the longer side; smaller images keep their size.

    Raises:
        MissingRuntimeError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as err:
        raise MissingRuntimeError("thumbnails need Pillow; pip install 'rnp-deploy[bench]'") from err
    pixels = image.astype(np.float64)
    if preprocessing is not None:
        pixels = pixels * np.reshape(preprocessing.std, (-1, 1, 1)) + np.reshape(
            preprocessing.mean, (-1, 1, 1)
        )
        pixels = pixels[::-1] if preprocessing.colour == "BGR" else pixels
    if len(pixels) != 3:
        pixels = pixels[:1]
    if preprocessing is None:
        pixels = (pixels - pixels.min()) / (np.ptp(pixels) or 1.0)
    bytes_hwc = np.rint(255 * pixels.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(bytes_hwc if len(pixels) == 3 else bytes_hwc[:, :, 0])
    picture.thumbnail((most, most))
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _class_name(index: int, classes: Sequence[str] | None) -> str:
    return classes[index] if classes is not None and 0 <= index < len(classes) else str(index)
