"""Data sets by name: labelled images, preprocessed and split for good."""

from __future__ import annotations

from pathlib import Path

from rnp_deploy.datasets.cifar import load_cifar
from rnp_deploy.datasets.digits import load_digits, write_sample_images
from rnp_deploy.datasets.image_data import ArrayImages, Colour, ImageData, LabelledImages, spread_rows
from rnp_deploy.datasets.image_folder import load_image_folder
from rnp_deploy.errors import InputError, MissingRuntimeError
from rnp_deploy.progress import Progress, no_progress

__all__ = ["ArrayImages", "ImageData", "LabelledImages", "load_data", "spread_rows", "write_sample_images"]

_KNOWN = "digits, cifar10:DIR, cifar100:DIR, folder:DIR"


def load_data(
    name: str,
    size: tuple[int, int] | None = None,
    colour: Colour | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    *,
    skip_bad: bool = False,
    progress: Progress = no_progress,
) -> ImageData:
    """Load a data set by name, as inputs of a network; nothing is ever downloaded.

    Args:
        name: ``digits``: scikit-learn's, 1797 scans; 16x16, grey, mean and deviation of its train
            split. ``cifar10:DIR`` or ``cifar100:DIR``: the published python pickles; 32x32, RGB,
            mean and deviation of each channel of its train split. ``folder:DIR``: image files in
            DIR/train/CLASS and DIR/val/CLASS (or ``validation``, ``test``), or in DIR/CLASS, of
            which a quarter of each class is held out, always the same; the middle 224x224 of
            256 pixels, RGB, mean and deviation of ImageNet.
        size: (H, W); None, here and below, is the data set's own.
        colour: Grey, or the order of the channels.
        mean: A value a channel, in the order of ``colour``, of values 0..1.
        std: As ``mean``.
        skip_bad: Leave unreadable files of a ``folder`` out, counted in ``ImageData.skipped``;
            where the pixels of a file turn out to be damaged, the next of its split stands in.
        progress: Told of files looked at.

    Raises:
        InputError: No data set of this name, files that are missing or not what they should be,
            or numbers that do not fit the colour.
        MissingRuntimeError: scikit-learn or Pillow is not installed.
    """
    kind, _, folder = name.partition(":")
    if name != "digits" and kind not in ("cifar10", "cifar100", "folder"):
        raise InputError(f"there is no data set {name!r}; known: {_KNOWN}")
    if name != "digits" and not folder:
        raise InputError(f"{name!r} does not say where the files are; pass {kind}:DIR")
    path = Path(folder)
    try:
        import PIL  # noqa: F401

        if kind == "digits":
            return load_digits(size, colour, mean, std)
        if kind == "folder":
            return load_image_folder(path, size, colour, mean, std, skip_bad=skip_bad, progress=progress)
        return load_cifar(kind, path, size, colour, mean, std)
    except OSError as err:
        raise InputError(f"{path} cannot be read: {err}") from err
    except ImportError as err:
        raise MissingRuntimeError(
            f"the data set {name!r} needs scikit-learn and Pillow ({err}); pip install rnp-deploy[train]"
        ) from err
