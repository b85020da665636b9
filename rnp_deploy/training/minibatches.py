"""Minibatches that depend on the seed and the step alone, whoever reads them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rnp_deploy.datasets import LabelledImages
from rnp_deploy.errors import InputError

__all__ = ["epoch_of", "minibatches", "split_batches"]

_Batch = tuple[Tensor, Tensor]
_Samples = list[tuple[int, int | None]]


class _Rows(Dataset[_Batch]):
    """A data set that torch reads a whole minibatch of at once, as (row, augmentation seed) pairs."""

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __getitems__(self, samples: _Samples) -> _Batch | InputError:
        rows = np.array([row for row, _ in samples], np.int64)
        seeds = None if samples[0][1] is None else np.array([seed for _, seed in samples], np.uint64)
        try:
            images, labels = self.images.read(rows, seeds)
        except InputError as err:
            return err  # raised by a worker process, it would come as a traceback in its message
        return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels)


def epoch_of(images: LabelledImages, batch_size: int) -> int:
    """Minibatches of an epoch; its incomplete rest is dropped, as batch norm needs several samples."""
    return len(images) // batch_size


def minibatches(
    images: LabelledImages,
    batch_size: int,
    seed: int,
    first: int = 0,
    *,
    rank: int = 0,
    ranks: int = 1,
    workers: int = 0,
) -> Iterator[_Batch]:
    """Yield shuffled, augmented minibatches for ever.

    Args:
        images: At least ``batch_size``.
        batch_size: Samples of all ranks together.
        seed: Of order and augmentation.
        first: The step to begin with; what comes is what came there in a run from step 0.
        rank: Every ``ranks``-th sample of a minibatch is yielded, from this on.
        ranks: Of how many.
        workers: Processes that read ahead; 0 reads in this one.

    Yields:
        Images ``[n, C, H, W]`` and labels ``[n]``, n = batch_size / ranks.
    """

    def samples() -> Iterator[_Samples]:
        of_epoch, made = np.empty((0, 2), np.int64), -1
        epoch = epoch_of(images, batch_size)
        for step in itertools.count(first):
            if step // epoch != made:
                made = step // epoch
                draws = np.random.default_rng((seed, made))
                of_epoch = np.stack(
                    [draws.permutation(len(images)), draws.integers(2**63, size=len(images))], 1
                )
            batch = of_epoch[step % epoch * batch_size :][rank:batch_size:ranks]
            yield [(row, augmentation) for row, augmentation in batch.tolist()]

    return _loaded(images, samples(), workers)


def split_batches(images: LabelledImages, rows: np.ndarray, size: int, workers: int = 0) -> Iterator[_Batch]:
    """Yield given rows in order, ``size`` at a time, without augmentation."""
    samples: Iterator[_Samples] = (
        [(int(row), None) for row in rows[i : i + size]] for i in range(0, len(rows), size)
    )
    return _loaded(images, samples, workers)


def _loaded(images: LabelledImages, samples: Iterator[_Samples], workers: int) -> Iterator[_Batch]:
    loader: DataLoader[Any] = DataLoader(
        _Rows(images),
        batch_sampler=samples,
        num_workers=workers,
        collate_fn=_as_it_is,
        # Of its own, since a loader draws a seed for its workers, used or not.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch
