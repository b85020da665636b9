"""Image files in one folder a class, read when asked for."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.datasets.augmentation import random_resized_crop
from rnp_deploy.datasets.image_data import Colour, ImageData
from rnp_deploy.errors import InputError
from rnp_deploy.preprocessing import IMAGE_SUFFIXES, image_array, make_preprocessing, open_image
from rnp_deploy.progress import Progress, no_progress

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = ["load_image_folder"]

_TEST_NAMES = ("val", "validation", "test")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB
_THREADS, _CHUNK = 8, 1024
_NAMED = 5


@dataclass(frozen=True)
class _ImageFiles:
    """Files below ``folder``; what cannot be decoded is replaced by the next where ``skip_bad``."""

    folder: Path
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    preprocessing: Preprocessing
    skip_bad: bool

    def __len__(self) -> int:
        return len(self.paths)

    def read(
        self, rows: NDArray[np.int64], seeds: NDArray[np.uint64] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        images, labels = [], []
        for i, row in enumerate(rows):
            image, read = self._readable(int(row))
            labels.append(self.labels[read])
            if seeds is None:
                images.append(image_array(image, self.preprocessing))
                continue
            boxes, flips = random_resized_crop(seeds[i : i + 1], np.array([[image.height, image.width]]))
            array = image_array(image, self.preprocessing, tuple(boxes[0].tolist()))
            images.append(array[:, :, ::-1] if flips[0] else array)
        return np.stack(images), np.array(labels, np.int64)

    def _readable(self, row: int) -> tuple[PillowImage, int]:
        for step in range(len(self)):
            at = (row + step) % len(self)
            try:
                return open_image(self.folder / self.paths[at]), at
            except InputError as err:
                if not self.skip_bad:
                    raise
                warnings.warn(f"{err}; the next image of its split stands in", stacklevel=2)
        raise InputError(f"no image below {self.folder} can be read")


def load_image_folder(
    folder: Path,
    size: tuple[int, int] | None = None,
    colour: Colour | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    *,
    skip_bad: bool = False,
    progress: Progress = no_progress,
) -> ImageData:
    """Images of ``train/CLASS`` and ``val/CLASS``, or of ``CLASS`` alone; see :func:`load_data`."""
    size, colour = size or (224, 224), colour or "RGB"
    preprocessing = make_preprocessing(
        colour=colour,
        size=size,
        shorter_side=round(max(size) * 256 / 224),
        mean=mean or _in_colour(_MEAN, colour),
        std=std or _in_colour(_STD, colour),
    )
    classes, train, test = _splits(folder)
    bad = _unreadable(folder, sorted(path for files in (*train, *test) for path in files), skip_bad, progress)
    splits = []
    for split in (train, test):
        kept = [(path, label) for label, files in enumerate(split) for path in files if path not in bad]
        labels = np.array([label for _, label in kept], np.int64)
        splits.append(_ImageFiles(folder, tuple(path for path, _ in kept), labels, preprocessing, skip_bad))
    lost = set(range(len(classes))).difference(splits[0].labels.tolist())
    if lost:
        raise InputError(f"no image to train class {classes[min(lost)]!r} of {folder} with can be read")
    return ImageData(splits[0], splits[1], classes, preprocessing, "folder", skipped=len(bad))


def _in_colour(rgb: tuple[float, ...], colour: Colour) -> tuple[float, ...]:
    return {"RGB": rgb, "BGR": rgb[::-1], "L": (round(sum(rgb) / 3, 4),)}[colour]


def _splits(folder: Path) -> tuple[tuple[str, ...], list[list[str]], list[list[str]]]:
    """Classes, and for each its train and its test files, relative to the folder."""
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder; pass folder:DIR with images in DIR/CLASS or DIR/train/CLASS"
        )
    if not (folder / "train").is_dir():
        found = _class_files(folder, "")
        single = next((name for name, files in found.items() if len(files) < 2), None)
        if single is not None:
            raise InputError(f"{folder / single} has one image; two are needed, to hold one out for testing")
        held_out = [sorted(files, key=_hash)[: max(len(files) // 4, 1)] for files in found.values()]
        kept = [sorted({*files} - {*out}) for files, out in zip(found.values(), held_out, strict=True)]
        return tuple(found), kept, [sorted(files) for files in held_out]
    second = next((name for name in _TEST_NAMES if (folder / name).is_dir()), None)
    if second is None:
        raise InputError(f"{folder} has a folder train but none of {', '.join(_TEST_NAMES)}")
    train, test = _class_files(folder, "train/"), _class_files(folder, f"{second}/")
    if train.keys() != test.keys():
        name = min(train.keys() ^ test.keys())
        one, other = (second, "train") if name in test else ("train", second)
        raise InputError(f"{folder / one} has class {name!r}, which {folder / other} lacks")
    return tuple(train), list(train.values()), list(test.values())


def _class_files(folder: Path, below: str) -> dict[str, list[str]]:
    parent = folder / below
    names = sorted(path.name for path in parent.iterdir() if path.is_dir() and path.name[0] != ".")
    if len(names) < 2:
        raise InputError(
            f"{parent} has {len(names)} class folders; at least 2 are needed, with images in each"
        )
    found = {}
    for name in names:
        files = (
            p for p in (parent / name).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."
        )
        found[name] = sorted(f"{below}{name}/{path.name}" for path in files if path.is_file())
        if not found[name]:
            raise InputError(
                f"{parent / name} has no images ({' '.join(sorted(IMAGE_SUFFIXES))}); folders in it are not followed"
            )
    return found


def _hash(path: str) -> bytes:
    return hashlib.sha256(path.encode(errors="surrogateescape")).digest()


def _unreadable(folder: Path, paths: Sequence[str], skip_bad: bool, progress: Progress) -> set[str]:
    """Those whose header is none; InputError with the first of them unless they are to be skipped."""

    def complaint(path: str) -> str | None:
        try:
            open_image(folder / path, pixels=False)
        except InputError as err:
            return str(err)
        return None

    bad = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            answers = zip(chunk, pool.map(complaint, chunk), strict=True)
            bad.update({path: words for path, words in answers if words})
            progress("checking images", start + len(chunk), len(paths))
    if bad and not skip_bad:
        named = "; ".join(list(bad.values())[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        raise InputError(
            f"{len(bad)} of {len(paths)} images are bad: {named}{more}; mend or remove them, or pass skip_bad"
        )
    return set(bad)
