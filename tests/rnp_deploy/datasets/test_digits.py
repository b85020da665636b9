"""The digits and their PNG files."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rnp_deploy.datasets import ImageData, load_data, write_sample_images
from rnp_deploy.errors import InputError, MissingRuntimeError
from rnp_deploy.preprocessing import read_images


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


def test_digits_are_split_by_class_and_always_the_same(digits: ImageData) -> None:
    assert digits.train_images.shape == (1347, 1, 16, 16)
    assert digits.test_images.shape == (450, 1, 16, 16)
    shares = np.bincount(digits.test_labels) / np.bincount(
        np.concatenate([digits.train_labels, digits.test_labels])
    )
    assert shares.min() > 0.24
    assert shares.max() < 0.26
    np.random.seed(99)
    again = load_data("digits")
    assert np.array_equal(again.test_images, digits.test_images)
    assert np.array_equal(again.test_labels, digits.test_labels)


def test_inputs_are_standardised_by_the_train_split_alone(digits: ImageData) -> None:
    assert digits.train_images.mean().item() == pytest.approx(0, abs=1e-3)
    assert digits.train_images.std().item() == pytest.approx(1, abs=1e-3)
    assert abs(digits.test_images.std() - 1) > 1e-3
    assert digits.preprocessing.mean[0] == round(digits.preprocessing.mean[0], 4)


def test_sample_images_give_the_networks_inputs_exactly(digits: ImageData, tmp_path: Path) -> None:
    paths = write_sample_images(digits, tmp_path / "new" / "samples", 15)
    assert [path.name[:4] for path in paths] == [f"{row:04d}" for row in range(15)]
    assert paths[7].name == f"0007-digit-{int(digits.test_labels[7])}.png"
    with Image.open(paths[7]) as image:
        assert image.size == (8, 8)
        assert np.array_equal(np.asarray(image), digits.test_scans[7])
    assert np.array_equal(read_images(paths, digits.preprocessing), digits.test_images[:15])


def test_sample_images_into_a_file_are_refused(digits: ImageData, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*taken"):
        write_sample_images(digits, tmp_path / "taken", 1)


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'letters'; known: digits"):
        load_data("letters")


@pytest.mark.parametrize("module", ["sklearn.datasets", "PIL"])
def test_a_missing_package_names_the_extra(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingRuntimeError, match=r"pip install rnp-deploy\[train\]"):
        load_data("digits")
