"""Images to time a network with, from where users have them."""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.report import RANDOM_STAMP, DataReport
from rnp_deploy.bundle.manifest import Manifest
from rnp_deploy.errors import InputError
from rnp_deploy.preprocessing import IMAGE_SUFFIXES, read_images

__all__ = ["Inputs", "load_inputs", "random_inputs"]

_SETS = ("digits", "cifar10:", "cifar100:", "folder:")


@dataclass(frozen=True)
class Inputs:
    """What a network is timed with.

    Attributes:
        name: As the user named it.
        images: float32 ``[N, C, H, W]``.
        labels: ``[N]`` class indices, or None.
        random: Whether they are noise.
    """

    name: str
    images: NDArray[np.float32]
    labels: NDArray[np.int64] | None = None
    random: bool = False

    def __post_init__(self) -> None:
        count = len(self.images) if np.ndim(self.images) else 0
        if count < 1:
            raise InputError(f"{self.name} has 0 images; pass at least one")
        if self.labels is not None and np.shape(self.labels) != (count,):
            raise InputError(
                f"{self.name} has labels of shape {np.shape(self.labels)} for {count} images; pass one class index each"
            )
        if self.labels is not None and self.labels.dtype.kind not in "iu":
            raise InputError(
                f"{self.name} has labels of type {self.labels.dtype}; pass class indices, integers"
            )

    def described(self) -> DataReport:
        """For the report, with the hash of all values."""
        digest = hashlib.sha256()
        for array in (self.images, self.labels):
            if array is not None:
                digest.update(f"{array.dtype} {array.shape} ".encode())
                digest.update(np.ascontiguousarray(array).data)
        return DataReport(
            name=self.name,
            images=len(self.images),
            sha256=digest.hexdigest(),
            labelled=self.labels is not None,
            stamp=RANDOM_STAMP if self.random else None,
        )


def random_inputs(manifest: Manifest, count: int, seed: int) -> Inputs:
    """Noise of the right shape, the same for the same seed."""
    shape = (count, *manifest.inputs[0].shape)
    images = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return Inputs("random", images, random=True)


def load_inputs(data: str, manifest: Manifest, most: int) -> Inputs:
    """Read images as a network takes them.

    Args:
        data: ``digits``, ``cifar10:DIR``, ``cifar100:DIR`` or ``folder:DIR``: the held-out split of a data set;
            ``FILE.npy``: images; ``FILE.npz``: arrays ``images`` and, where there are any, ``labels``; ``DIR``: every
            image file below it, with labels where its folders are named like the network's classes.
        manifest: Of the network.
        most: Images at most, evenly over those there are, of folders in a drawn order that is always the same;
            files of arrays are taken whole, as they are.

    Raises:
        InputError: Something cannot be read, or does not fit; the message names it.
        MissingRuntimeError: Pillow or scikit-learn is not installed.
    """
    if data == "digits" or data.startswith(_SETS[1:]):
        return _held_out(data, manifest, most)
    if data.endswith((".npy", ".npz")):
        return _arrays(data, manifest)
    if Path(data).is_dir():
        return _image_files(Path(data), manifest, most)
    raise InputError(
        f"there are no images at {data!r}; pass a folder, FILE.npy, FILE.npz, digits, cifar10:DIR, cifar100:DIR or "
        "folder:DIR"
    )


def _arrays(data: str, manifest: Manifest) -> Inputs:
    try:
        content: Any = np.load(data, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return Inputs(data, content)
        with content:
            inputs = Inputs(data, content["images"], content.get("labels"))
    except InputError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise InputError(f"{data} cannot be read: {err}; save float32 images [N, C, H, W]") from err
    classes = math.prod(manifest.outputs[0].shape)
    if inputs.labels is not None and not 0 <= inputs.labels.min() <= inputs.labels.max() < classes:
        raise InputError(
            f"{data} has labels {inputs.labels.min()}..{inputs.labels.max()}; those of {classes} classes are "
            f"0..{classes - 1}"
        )
    return inputs


def _held_out(data: str, manifest: Manifest, most: int) -> Inputs:
    from rnp_deploy.datasets import load_data, spread_rows

    wanted, (channels, *size) = manifest.preprocessing, manifest.inputs[0].shape
    form: Any = (tuple(size), "L" if channels == 1 else "RGB")
    if wanted is not None:
        form = (wanted.size, wanted.colour, wanted.mean, wanted.std)
    found = load_data(data, *form)
    rows = spread_rows(found.test, most)
    images, labels = found.test.read(_mixed(rows) if data.startswith("folder:") else rows)
    return Inputs(data, images, _labels([found.classes[label] for label in labels], manifest, labels))


def _image_files(folder: Path, manifest: Manifest, most: int) -> Inputs:
    if manifest.preprocessing is None:
        raise InputError(
            f"the network does not say how images become inputs; save {folder} as float32 inputs [N, C, H, W] in a .npy"
        )
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "." and path.is_file()
    )
    if not files:
        raise InputError(f"{folder} has no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
    from rnp_deploy.datasets import spread_rows

    files = [files[i] for i in _mixed(spread_rows(files, most))]
    labels = _labels([path.parent.name for path in files], manifest)
    return Inputs(str(folder), read_images(files, manifest.preprocessing), labels)


def _labels(
    names: Sequence[str], manifest: Manifest, unnamed: NDArray[np.int64] | None = None
) -> NDArray[np.int64] | None:
    """The network's index of each class, ``unnamed`` where it names none; None where one is not the network's."""
    if manifest.classes is None:
        return unnamed
    classes = {name: index for index, name in enumerate(manifest.classes)}
    labels = [classes.get(name) for name in names]
    return None if None in labels else np.array(labels, np.int64)


def _mixed(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """A folder comes class by class, and what is timed are the first batches alone."""
    return np.random.default_rng(0).permutation(rows)
