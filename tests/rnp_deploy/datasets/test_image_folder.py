"""Folders of image files: splits, reading, and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from rnp_deploy.datasets import load_data
from rnp_deploy.errors import InputError
from rnp_deploy.preprocessing import read_images

SMALL = {"size": (14, 14)}


def write(path, value=None, size=(20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels if value is None else np.full_like(pixels, value)).save(path)
    return path


def cut(path):
    """The header stays good."""
    path.write_bytes(path.read_bytes()[:-300])


@pytest.fixture
def split(tmp_path):
    for i in range(3):
        write(tmp_path / "train" / "cat" / f"{i}.png", 10 * i)
        write(tmp_path / "train" / "dog" / f"{i}.JPEG", 200 + 10 * i)
    for name in ("cat", "dog"):
        write(tmp_path / "val" / name / "a.bmp")
    return tmp_path


@pytest.mark.parametrize("second", ["val", "validation", "test"])
def test_train_and_val_are_read_as_rnp_run_would(split, second) -> None:
    (split / "val").rename(split / second)
    (split / "train" / "cat" / ".hidden.png").write_text("")
    (split / "train" / "cat" / "notes.txt").write_text("")
    write(split / "train" / "cat" / "deeper" / "9.png")
    (split / "train" / ".cache").mkdir()
    data = load_data(f"folder:{split}")
    assert (data.name, data.classes, data.skipped) == ("folder", ("cat", "dog"), 0)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (data.preprocessing.size, data.preprocessing.shorter_side) == ((224, 224), 256)
    images, labels = data.train.read(np.array([4, 0]))
    paths = [split / "train" / "dog" / "1.JPEG", split / "train" / "cat" / "0.png"]
    assert np.array_equal(images, read_images(paths, data.preprocessing))
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("colour", "mean"), [("RGB", (0.485, 0.456, 0.406)), ("BGR", (0.406, 0.456, 0.485)), ("L", (0.449,))]
)
def test_size_and_colour_can_be_asked_for(split, colour, mean) -> None:
    data = load_data(f"folder:{split}", (14, 28), colour)
    assert data.train.read(np.arange(2))[0].shape == (2, len(mean), 14, 28)
    assert (data.preprocessing.mean, data.preprocessing.shorter_side) == (mean, 32)


def test_without_a_train_folder_a_quarter_of_each_class_is_held_out_for_ever(tmp_path) -> None:
    for name, count in (("a", 20), ("b", 8), ("c", 2)):
        for i in range(count):
            write(tmp_path / "one" / name / f"{i:02d}.png", size=(2, 2))
    data = load_data(f"folder:{tmp_path / 'one'}", **SMALL)
    assert np.bincount(data.test.labels).tolist() == [5, 2, 1]
    assert np.bincount(data.train.labels).tolist() == [15, 6, 1]
    assert not set(data.train.paths) & set(data.test.paths)
    assert [path for path in data.test.paths if path[0] == "b"] == ["b/03.png", "b/06.png"]
    (tmp_path / "one").rename(tmp_path / "two")
    np.random.seed(7)
    assert load_data(f"folder:{tmp_path / 'two'}", **SMALL).test.paths == data.test.paths


def test_augmented_images_depend_on_their_seed_alone_in_any_worker(split) -> None:
    for i in range(3):
        write(split / "train" / "cat" / f"{i}.png", size=(40 + 10 * i, 60))
    train = load_data(f"folder:{split}", **SMALL).train
    rows, seeds = np.zeros(64, np.int64), np.arange(64, dtype=np.uint64)
    images, _ = train.read(rows, seeds)
    assert len(np.unique(images.reshape(64, -1), axis=0)) == 64
    parts = [(rows[:5], seeds[:5]), (rows[5:6], seeds[5:6])]
    loader = torch.utils.data.DataLoader(
        parts,
        batch_size=None,
        num_workers=2,
        collate_fn=lambda part: pickle.loads(pickle.dumps(train)).read(*part),
    )
    assert np.array_equal(np.concatenate([part[0] for part in loader]), images[:6])


def test_bad_files_are_counted_and_the_first_five_named(split) -> None:
    for i in range(7):
        (split / "val" / "dog" / f"bad{i}.png").write_text("no image")
    with pytest.raises(
        InputError, match=r"^7 of 15 images are bad: [^\n]*bad0.*bad4.*; and 2 more; mend"
    ) as caught:
        load_data(f"folder:{split}")
    assert "bad5" not in str(caught.value)
    told = []
    data = load_data(f"folder:{split}", skip_bad=True, progress=lambda *step: told.append(step))
    assert (data.skipped, len(data.test), told) == (7, 2, [("checking images", 15, 15)])


def test_files_of_16_bits_count_as_bad(split) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(split / "val" / "dog" / "deep.png")
    with pytest.raises(InputError, match=r"1 of 9 images are bad: .*deep\.png has more than 8 bits"):
        load_data(f"folder:{split}")


def test_pixels_found_damaged_when_read_are_an_error_or_replaced_with_the_next(split) -> None:
    for path in (split / "train" / "cat" / "2.png", split / "train" / "dog" / "0.JPEG"):
        write(path, size=(60, 60))
        cut(path)
    rows = np.array([1, 2, 3])
    with pytest.raises(InputError, match=r"cat/2\.png cannot be read"):
        load_data(f"folder:{split}", **SMALL).train.read(rows)
    data = load_data(f"folder:{split}", **SMALL, skip_bad=True)
    assert data.skipped == 0
    images, labels = data.train.read(rows)
    assert labels.tolist() == [0, 1, 1]
    paths = [split / "train" / "cat" / "1.png", *[split / "train" / "dog" / "1.JPEG"] * 2]
    assert np.array_equal(images, read_images(paths, data.preprocessing))


def test_the_last_readable_file_going_bad_is_an_error_and_no_endless_search(split) -> None:
    data = load_data(f"folder:{split}", skip_bad=True)
    for path in (split / "val").rglob("*.bmp"):
        path.unlink()
    with pytest.raises(InputError, match=r"no image below .* can be read"):
        data.test.read(np.array([0]))


def remove(path):
    for inner in sorted(path.rglob("*"), reverse=True):
        inner.rmdir() if inner.is_dir() else inner.unlink()
    path.rmdir()


def spoil(path):
    for file in path.iterdir():
        file.write_text("no image")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: remove(d), "is not a folder; pass folder:DIR"),
        (lambda d: remove(d / "val"), "has a folder train but none of val, validation, test"),
        (lambda d: remove(d / "val" / "cat"), "val has 1 class folders; at least 2"),
        (lambda d: [remove(p) for p in (d / "train").iterdir()], "train has 0 class folders"),
        (lambda d: [remove(p) for p in d.iterdir()], "has 0 class folders"),
        (lambda d: write(d / "val" / "emu" / "1.png"), "val has class 'emu', which .*train lacks"),
        (lambda d: write(d / "train" / "emu" / "1.png"), "train has class 'emu', which .*val lacks"),
        (lambda d: (d / "train" / "emu").mkdir(), "train/emu has no images"),
        (lambda d: (d / "train" / "dog").rename(d / "train" / "Dog"), "train has class 'Dog'"),
        (lambda d: [remove(d / "train"), write(d / "emu" / "1.png")], "val has no images"),
        (lambda d: spoil(d / "train" / "dog"), "no image to train class 'dog'"),
        (lambda d: [spoil(d / "val" / name) for name in ("cat", "dog")], "the test split is empty"),
    ],
)
def test_folders_that_hold_no_data_set_are_refused(split, change, words) -> None:
    change(split)
    with pytest.raises(InputError, match=rf"^[^\n]*({words})[^\n]*$"):
        load_data(f"folder:{split}", skip_bad=True)


def test_a_class_of_one_image_cannot_be_split(tmp_path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        write(tmp_path / name)
    with pytest.raises(InputError, match="b has one image; two are needed"):
        load_data(f"folder:{tmp_path}")
