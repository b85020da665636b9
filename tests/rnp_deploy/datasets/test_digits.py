"""The digits and their PNG files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rnp_deploy.datasets import ImageData, load_data, write_sample_images
from rnp_deploy.errors import InputError
from rnp_deploy.preprocessing import read_images


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


def test_digits_are_split_by_class_and_always_the_same(digits: ImageData) -> None:
    assert digits.train.read(np.arange(2))[0].shape == (2, 1, 16, 16)
    assert (len(digits.train), len(digits.test)) == (1347, 450)
    shares = np.bincount(digits.test.labels) / np.bincount(
        np.concatenate([digits.train.labels, digits.test.labels])
    )
    assert shares.min() > 0.24
    assert shares.max() < 0.26
    np.random.seed(99)
    again = load_data("digits")
    for one, other in zip(again.test.read(np.arange(450)), digits.test.read(np.arange(450)), strict=True):
        assert np.array_equal(one, other)


def test_inputs_are_standardised_by_the_train_split_alone(digits: ImageData) -> None:
    images, _ = digits.train.read(np.arange(1347))
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    assert abs(digits.test.read(np.arange(450))[0].std() - 1) > 1e-3
    assert digits.preprocessing.mean[0] == round(digits.preprocessing.mean[0], 4)


def test_training_images_are_distorted_by_seed_and_test_images_never(digits: ImageData) -> None:
    rows, seeds = np.arange(3), np.arange(3, dtype=np.uint64)
    assert not np.array_equal(digits.train.read(rows)[0], digits.train.read(rows, seeds)[0])
    assert np.array_equal(digits.test.read(rows)[0], digits.test.read(rows, seeds)[0])


def test_size_colour_and_statistics_can_be_asked_for() -> None:
    data = load_data("digits", (12, 20), "RGB", mean=(0.5, 0.4, 0.3))
    assert data.train.read(np.arange(2))[0].shape == (2, 3, 12, 20)
    assert data.preprocessing.mean == (0.5, 0.4, 0.3)
    assert data.preprocessing.std[0] == data.preprocessing.std[2] > 0.3


def test_sample_images_give_the_networks_inputs_exactly(digits: ImageData, tmp_path: Path) -> None:
    paths = write_sample_images(digits, tmp_path / "new" / "samples", 15)
    assert [path.name[:4] for path in paths] == [f"{row:04d}" for row in range(15)]
    assert paths[7].name == f"0007-digit-{int(digits.test.labels[7])}.png"
    with Image.open(paths[7]) as image:
        assert image.size == (8, 8)
        assert digits.test_scans is not None
        assert np.array_equal(np.asarray(image), digits.test_scans[7])
    assert np.array_equal(read_images(paths, digits.preprocessing), digits.test.read(np.arange(15))[0])


def test_class_names_cannot_lead_sample_images_elsewhere(digits: ImageData, tmp_path: Path) -> None:
    data = dataclasses.replace(digits, classes=("../../up",) * 10, name="a/b")
    assert [path.name for path in write_sample_images(data, tmp_path, 1)] == ["0000-a_b-______up.png"]


def test_sample_images_that_cannot_be_written_are_refused(digits: ImageData, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*taken"):
        write_sample_images(digits, tmp_path / "taken", 1)
    with pytest.raises(InputError, match="'digits' has no scans"):
        write_sample_images(dataclasses.replace(digits, test_scans=None), tmp_path, 1)
