"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) in the python pickles they are published as."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.datasets.augmentation import crop_and_flip
from rnp_deploy.datasets.image_data import Augment, Colour, ImageData
from rnp_deploy.errors import InputError
from rnp_deploy.preprocessing import image_array, make_preprocessing

__all__ = ["load_cifar"]

_SIDE = 32


@dataclass(frozen=True)
class _Files:
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    names: str


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_FILES = {
    "cifar10": _Files("cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", "labels", "label_names"),
    "cifar100": _Files("cifar-100-python", ("train",), "test", "meta", "fine_labels", "fine_label_names"),
}


@dataclass(frozen=True)
class _PixelImages:
    """8-bit images in memory, a quarter of what inputs would take; ``pixels`` ``[N, h, w, 3]``, RGB."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    preprocessing: Preprocessing
    augment: Augment | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def read(
        self, rows: NDArray[np.int64], seeds: NDArray[np.uint64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        from PIL import Image

        images = np.stack([image_array(Image.fromarray(x), self.preprocessing) for x in self.pixels[rows]])
        if seeds is not None and self.augment is not None:
            images = self.augment(images, seeds)
        return images, self.labels[rows]


def load_cifar(
    name: str,
    folder: Path,
    size: tuple[int, int] | None = None,
    colour: Colour | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> ImageData:
    """``cifar10`` or ``cifar100``, from its folder or the one above; see :func:`load_data`."""
    files = _FILES[name]
    folder = folder / files.folder if (folder / files.folder).is_dir() else folder
    meta = _unpickled(folder / files.meta, name)
    names = meta.get(files.names)
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(x, bytes) for x in names):
        raise InputError(f"{folder / files.meta} has no list of class names {files.names!r}")
    classes = tuple(x.decode(errors="replace") for x in names)
    batches = [_read_batch(folder / file, name, len(classes)) for file in (*files.train, files.test)]
    pixels = np.concatenate([batch[0] for batch in batches[:-1]])
    labels = np.concatenate([batch[1] for batch in batches[:-1]])
    size, colour = size or (_SIDE, _SIDE), colour or "RGB"
    if mean is None or std is None:
        own_mean, own_std = _statistics(pixels, colour)
        mean, std = mean or own_mean, std or own_std
    preprocessing = make_preprocessing(colour=colour, size=size, mean=mean, std=std)
    augment = partial(crop_and_flip, padding=max(size) // 8)
    return ImageData(
        train=_PixelImages(pixels, labels, preprocessing, augment),
        test=_PixelImages(*batches[-1], preprocessing),
        classes=classes,
        preprocessing=preprocessing,
        name=name,
        test_scans=batches[-1][0],
    )


def _statistics(pixels: NDArray[np.uint8], colour: Colour) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, 0..1, of 32x32 pixels in this colour."""
    from PIL import Image

    tall = Image.fromarray(pixels.reshape(-1, _SIDE, 3))
    values = np.asarray(tall if colour != "L" else tall.convert("L")).reshape(-1, 1 if colour == "L" else 3)
    shares = np.stack([np.bincount(channel, minlength=256) for channel in values.T]) / len(values)
    levels = np.arange(256) / 255
    means = shares @ levels
    deviations = np.sqrt((shares * (levels - means[:, None]) ** 2).sum(axis=1))
    if not deviations.all():
        raise InputError("every image of the train split is the same colour; pass std")
    order = slice(None, None, -1 if colour == "BGR" else 1)
    return tuple(means.round(4).tolist()[order]), tuple(deviations.round(4).tolist()[order])


def _read_batch(path: Path, name: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels ``[n, 32, 32, 3]`` and labels ``[n]`` of one file."""
    content, key = _unpickled(path, name), _FILES[name].labels
    try:
        data, labels = content["data"].pixels(), content[key]
    except (KeyError, AttributeError, TypeError, ValueError) as err:
        raise InputError(f"{path} is no batch of {name}: it needs uint8 'data' and {key!r} ({err})") from err
    if data.shape[1:] != (3 * _SIDE**2,) or not len(data):
        raise InputError(f"{path} has data of shape {data.shape}, not (n, {3 * _SIDE**2})")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise InputError(f"{path} has {len(data)} images, but {key!r} is not a list of as many")
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise InputError(f"{path} has label {label!r:.20} in row {row}; labels are 0..{classes - 1}")
    pixels = data.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), np.array(labels, np.int64)


def _unpickled(path: Path, name: str) -> dict[Any, Any]:
    where = f"unpack {name.replace('cifar', 'cifar-')}-python.tar.gz and pass its folder, {name}:DIR"
    try:
        with path.open("rb") as stream:
            content = _ArraysOnly(stream, encoding="bytes").load()
    except InputError as err:
        raise InputError(f"{path} {err}; {where}") from err
    except OSError as err:
        raise InputError(f"{path} cannot be read: {err.strerror}; {where}") from err
    except Exception as err:  # pickle raises whatever a damaged file leads it to
        raise InputError(f"{path} is cut short or no pickle ({type(err).__name__}: {err}); {where}") from err
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a dict; {where}")
    return {key.decode(errors="replace") if isinstance(key, bytes) else key: x for key, x in content.items()}


class _PickledDtype:
    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass  # byte order and the like, which uint8 has not


class _PickledArray:
    """What a pickle says of an array; numpy's own ``__setstate__`` trusts it too far."""

    state: Any = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state

    def pixels(self) -> NDArray[np.uint8]:
        """The array; TypeError or ValueError unless it is one of uint8."""
        _, shape, dtype, fortran, data = self.state
        if not isinstance(dtype, _PickledDtype) or dtype.code not in ("u1", b"u1"):
            raise ValueError("data of another type")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


_GLOBALS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): lambda text, _: text.encode("latin-1"),  # how Python 3 writes bytes
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _GLOBALS:
            raise InputError(f"is not CIFAR as published: it would import {module}.{name}")
        return _GLOBALS[module, name]
