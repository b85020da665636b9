"""Arrays of a user's own, and what is refused of them."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.datasets import ArrayImages, ImageData
from rnp_deploy.errors import InputError

GREY = Preprocessing(colour="L", size=(2, 3), mean=(0.0,), std=(1.0,))


def arrays(count=4, labels=None, **fields):
    images = np.arange(count * 6, dtype=np.float32).reshape(count, 1, 2, 3)
    return ArrayImages(images, np.arange(count) % 2 if labels is None else labels, **fields)


def data(**fields):
    given = {
        "train": arrays(),
        "test": arrays(2),
        "classes": ("a", "b"),
        "preprocessing": GREY,
        "name": "mine",
    }
    return ImageData(**{**given, **fields})


def add_seed(images, seeds):
    return images + seeds[:, None, None, None].astype(np.float32)


def test_rows_are_read_in_the_order_asked_for_and_are_the_callers() -> None:
    mine = data()
    images, labels = mine.train.read(np.array([3, 0, 3]))
    assert images[:, 0, 0, 0].tolist() == [18, 0, 18]
    assert labels.tolist() == [1, 0, 1]
    images[:] = 0
    assert mine.train.images[3, 0, 0, 0] == 18


def test_seeds_augment_where_there_is_something_to_augment_with() -> None:
    rows, seeds = np.array([0, 1]), np.array([10, 20], np.uint64)
    assert arrays().read(rows, seeds)[0][:, 0, 0, 0].tolist() == [0, 6]
    assert arrays(augment=add_seed).read(rows)[0][:, 0, 0, 0].tolist() == [0, 6]
    assert arrays(augment=add_seed).read(rows, seeds)[0][:, 0, 0, 0].tolist() == [10, 26]


def test_data_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(data(train=arrays(augment=add_seed))))
    assert np.array_equal(again.train.images, arrays().images)
    assert (again.classes, again.preprocessing, again.skipped) == (("a", "b"), GREY, 0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda: data(train=arrays(0)), "the train split is empty"),
        (lambda: data(test=arrays(0)), "the test split is empty"),
        (lambda: data(test=arrays(4, np.array([0, 1, 2, -1]))), "the test split has label 2 in row 2; .* 0..1"),
        (lambda: data(train=arrays(2, np.array([-1, 0]))), "the train split has label -1 in row 0"),
        (lambda: data(train=arrays(4, np.arange(3))), r"train split has labels int64 \(3,\) for 4 images"),
        (lambda: data(train=arrays(2, np.zeros(2, np.int32))), r"labels int32 \(2,\) .*pass int64"),
        (lambda: data(train=arrays(2, np.zeros((2, 1), np.int64))), r"int64 \(2, 1\)"),
        (lambda: data(test=ArrayImages(np.zeros((1, 1, 3, 2), np.float32), np.zeros(1, np.int64))), "makes"),
        (lambda: ArrayImages(np.zeros((1, 2, 3), np.float32), np.zeros(1, np.int64)), r"\(N, C, H, W\)"),
        (lambda: ArrayImages(np.zeros((1, 1, 2, 3)), np.zeros(1, np.int64)), "float64"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(wrong, words) -> None:
    with pytest.raises(InputError, match=words):
        wrong()


def test_the_example_of_the_guide_runs() -> None:
    guide = Path(__file__).parents[3] / "docs" / "data.md"
    (block,) = re.findall(r"^```python\n(.*?)^```", guide.read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, object] = {}
    exec(compile(block, str(guide), "exec"), names)
    assert len(names["data"].test) == 20
