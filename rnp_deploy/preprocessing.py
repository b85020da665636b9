"""From image files to network inputs; used in training and in ``rnp-run`` alike."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.errors import InputError, MissingRuntimeError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = ["IMAGE_SUFFIXES", "image_array", "make_preprocessing", "open_image", "read_images"]

#: What files are looked at in folders.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def make_preprocessing(**fields: Any) -> Preprocessing:
    """A :class:`Preprocessing`; InputError where the fields do not fit each other."""
    try:
        return Preprocessing(**fields)
    except ValidationError as err:
        raise InputError(f"preprocessing: {err.errors()[0]['msg']}") from err


def image_array(
    image: PillowImage, preprocessing: Preprocessing, box: tuple[int, int, int, int] | None = None
) -> NDArray[np.float32]:
    """Turn one 8-bit image into a network input ``[C, H, W]``; see :class:`Preprocessing`.

    With ``box`` (left, upper, right, lower; pixels) that part is resized to ``size``, and
    ``shorter_side`` is not looked at.
    """
    from PIL import Image

    height, width = preprocessing.size
    resized_to, corner = (width, height), (0, 0)
    if preprocessing.shorter_side is not None and box is None:
        scale = preprocessing.shorter_side / min(image.size)
        resized_to = (
            max(int(image.width * scale + 1e-6), width),
            max(int(image.height * scale + 1e-6), height),
        )
        corner = (round((resized_to[0] - width) / 2), round((resized_to[1] - height) / 2))
    mode = "L" if preprocessing.colour == "L" else "RGB"
    resized = image.convert(mode).resize(resized_to, Image.Resampling.BILINEAR, box)
    resized = resized.crop((*corner, corner[0] + width, corner[1] + height))
    pixels = np.asarray(resized, np.float32).reshape(height, width, -1) / 255.0
    if preprocessing.colour == "BGR":
        pixels = pixels[:, :, ::-1]
    mean = np.asarray(preprocessing.mean, np.float32)
    std = np.asarray(preprocessing.std, np.float32)
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1), np.float32)


def read_images(paths: Sequence[Path], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Read image files into a batch ``[N, C, H, W]``.

    Raises:
        InputError: A file is missing or not an image Pillow reads.
        MissingRuntimeError: Pillow is not installed.
    """
    try:
        import PIL  # noqa: F401
    except ImportError as err:
        raise MissingRuntimeError("reading images needs Pillow; pip install pillow") from err
    if not paths:
        raise InputError("no image was given; pass at least one")
    return np.stack([image_array(open_image(path), preprocessing) for path in paths])


def open_image(path: Path, *, pixels: bool = True) -> PillowImage:
    """Open an 8-bit image file and close it again.

    Args:
        path: Its first frame is what is read; orientation tags are not followed.
        pixels: Decode them; False reads the header alone, and the image is good for nothing more.

    Raises:
        InputError: It is missing, not an image Pillow reads, or has more than 8 bits a channel.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            deep = image.mode[0] in "IF"
            if pixels and not deep:
                image.load()
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as err:
        raise InputError(f"{path} cannot be read as an image: {err}") from err
    if deep:
        raise InputError(f"{path} has more than 8 bits a channel; convert it to 8 bits first")
    return image
