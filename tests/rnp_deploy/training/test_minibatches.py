"""Minibatches that a killed run, and a second process, would have got as well."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from rnp_deploy.datasets import ArrayImages
from rnp_deploy.errors import InputError
from rnp_deploy.training.minibatches import epoch_of, minibatches, split_batches
from tiny_training import tiny_data

IMAGES = tiny_data().train
BATCH = 24  # an epoch of 5, and 8 images left over


def take(count: int, **arguments: int) -> list[tuple[Tensor, Tensor]]:
    return list(itertools.islice(minibatches(IMAGES, BATCH, 7, **arguments), count))


@pytest.fixture(scope="module")
def unbroken() -> list[tuple[Tensor, Tensor]]:
    return take(12)


def assert_same(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> None:
    for (images, labels), (others, names) in zip(one, other, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, names)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [0, 3, 5, 11])
def test_a_step_has_the_same_minibatch_wherever_reading_began(
    first: int, workers: int, unbroken: list[tuple[Tensor, Tensor]]
) -> None:
    assert_same(take(12 - first, first=first, workers=workers), unbroken[first:])


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_share_the_minibatch_of_one(
    workers: int, unbroken: list[tuple[Tensor, Tensor]]
) -> None:
    for rank in (0, 1):
        share = [(images[rank::2], labels[rank::2]) for images, labels in unbroken[4:7]]
        assert_same(take(3, first=4, rank=rank, ranks=2, workers=workers), share)


def test_the_seed_decides(unbroken: list[tuple[Tensor, Tensor]]) -> None:
    torch.rand(3)
    np.random.seed(0)
    assert_same(take(2), unbroken[:2])
    images, labels = next(minibatches(IMAGES, BATCH, 8))
    assert not torch.equal(labels, unbroken[0][1])
    assert not torch.equal(images, unbroken[0][0])


def test_an_epoch_holds_every_image_once_and_each_has_its_own_order() -> None:
    numbers = np.arange(60, dtype=np.float32).reshape(60, 1, 1, 1)
    images = ArrayImages(numbers, np.arange(60))
    batches = minibatches(images, 20, 0)
    orders = []
    for _ in range(3):
        shown, labels = zip(*itertools.islice(batches, 3), strict=True)
        order = torch.cat(labels).tolist()
        assert torch.cat(shown).flatten().tolist() == order
        assert sorted(order) == list(range(60))
        orders.append(tuple(order))
    assert len({*orders, tuple(range(60))}) == 4


def test_an_image_is_augmented_anew_in_every_epoch() -> None:
    one = ArrayImages(IMAGES.images[:1].repeat(2, 0), IMAGES.labels[:2], IMAGES.augment)
    shown = torch.cat([images for images, _ in itertools.islice(minibatches(one, 2, 0), 3)])
    assert len(shown.flatten(1).unique(dim=0)) == 6


def test_the_rest_of_an_epoch_is_left_out() -> None:
    assert epoch_of(IMAGES, BATCH) == 5
    assert epoch_of(IMAGES, 128) == 1
    assert {len(labels) for _, labels in take(6)} == {BATCH}


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_come_in_order_and_as_they_are(workers: int) -> None:
    rows = np.array([5, 3, 99, 0, 7])
    batches = list(split_batches(IMAGES, rows, 2, workers))
    assert [len(labels) for _, labels in batches] == [2, 2, 1]
    images, labels = (torch.cat(parts).numpy() for parts in zip(*batches, strict=True))
    assert np.array_equal(images, IMAGES.images[rows])
    assert np.array_equal(labels, IMAGES.labels[rows])


@dataclasses.dataclass(frozen=True)
class _Unreadable:
    labels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(8, np.int64))

    def __len__(self) -> int:
        return 8

    def read(self, rows: np.ndarray, seeds: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        raise InputError(f"image {rows[0]} cannot be read")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_in_one_line_whoever_reads_it(workers: int) -> None:
    with pytest.raises(InputError, match=r"^image 0 cannot be read$"):
        next(iter(split_batches(_Unreadable(), np.arange(8), 4, workers)))
