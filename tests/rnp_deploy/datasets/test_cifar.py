"""CIFAR pickles as published, damaged, and with code in them."""

from __future__ import annotations

import contextlib
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from rnp_deploy.datasets import load_data
from rnp_deploy.errors import InputError
from rnp_deploy.preprocessing import image_array

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (5, 4, 3072), dtype=np.uint8)
NAMES = [b"cat", b"dog", b"ship/boat"]


def published(content):
    """Protocol 2, with the module path of the numpy of the time."""
    return pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python_2(content):
    """As Python 2 wrote it: byte strings are plain strings, arrays' bytes are not encoded."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def item(value):
        if isinstance(value, np.ndarray):
            data = b"T" + value.nbytes.to_bytes(4, "little") + value.tobytes()
            shape = b"(" + b"".join(b"J" + n.to_bytes(4, "little") for n in value.shape) + b"t"
            dtype = (
                b"cnumpy\ndtype\n("
                + text(b"u1")
                + b"K\x00K\x01tR(K\x03"
                + text(b"|")
                + b"NNNJ\xff\xff\xff\xff"
            )
            dtype += b"J\xff\xff\xff\xffK\x00tb"
            new = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
            return new + b"(K\x01" + shape + dtype + b"I00\n" + data + b"tb"
        if isinstance(value, list):
            return b"](" + b"".join(map(item, value)) + b"e"
        return text(value) if isinstance(value, bytes) else b"K" + bytes([value])

    pairs = b"".join(text(key) + item(value) for key, value in content.items())
    return b"\x80\x02}(" + pairs + b"u."


def ten(folder, write=published):
    folder.mkdir(parents=True)
    for i, pixels in enumerate(PIXELS):
        batch = {b"batch_label": b"some", b"labels": [0, 1, 2, i % 3], b"data": pixels}
        (folder / f"data_batch_{i + 1}").write_bytes(write(batch))
    (folder / "test_batch").write_bytes(write({b"labels": [2, 1], b"data": PIXELS[0, :2]}))
    (folder / "batches.meta").write_bytes(write({b"label_names": NAMES, b"num_vis": 0}))


@pytest.mark.parametrize("write", [published, python_2, lambda x: pickle.dumps(x, protocol=2)])
@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_cifar10_is_read_as_published(tmp_path, write, below) -> None:
    ten(tmp_path / "data" / below, write)
    data = load_data(f"cifar10:{tmp_path / 'data'}")
    assert (data.name, data.classes) == ("cifar10", ("cat", "dog", "ship/boat"))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 1, 0, 1, 2, 2, 0, 1, 2, 0, 0, 1, 2, 1]
    assert data.test.labels.tolist() == [2, 1]
    pixels = PIXELS.reshape(-1, 3, 32, 32) / 255
    assert data.preprocessing.mean == tuple(pixels.mean(axis=(0, 2, 3)).round(4))
    assert data.preprocessing.std == tuple(pixels.std(axis=(0, 2, 3)).round(4))
    mean, std = (np.reshape(x, (3, 1, 1)) for x in (data.preprocessing.mean, data.preprocessing.std))
    images, labels = data.train.read(np.array([19, 0]))
    np.testing.assert_allclose(images, (pixels[[19, 0]] - mean) / std, atol=1e-5)
    assert labels.tolist() == [1, 0]


def test_cifar100_has_fine_labels(tmp_path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    content = {b"fine_labels": [2, 0, 1, 1], b"coarse_labels": [0] * 4, b"data": np.asfortranarray(PIXELS[0])}
    for name in ("train", "test"):
        (folder / name).write_bytes(published(content))
    (folder / "meta").write_bytes(published({b"fine_label_names": NAMES, b"coarse_label_names": [b"all"]}))
    data = load_data(f"cifar100:{tmp_path}")
    assert (data.name, data.train.labels.tolist()) == ("cifar100", [2, 0, 1, 1])
    assert np.array_equal(data.test_scans, PIXELS[0].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def test_other_sizes_and_colours_are_what_preprocessing_makes_of_the_pixels(tmp_path) -> None:
    ten(tmp_path / "data")
    name = f"cifar10:{tmp_path / 'data'}"
    rgb, bgr, grey = (load_data(name, colour=colour) for colour in ("RGB", "BGR", "L"))
    assert bgr.preprocessing.mean == rgb.preprocessing.mean[::-1]
    for data in (bgr, grey, load_data(name, (20, 48), "L")):
        image = Image.fromarray(PIXELS[0, 1].reshape(3, 32, 32).transpose(1, 2, 0))
        assert np.array_equal(data.train.read(np.array([1]))[0][0], image_array(image, data.preprocessing))
    values = grey.train.read(np.arange(20))[0]
    assert abs(values.mean()) < 1e-3
    assert abs(values.std() - 1) < 1e-3
    assert load_data(name, mean=(0.1, 0.2, 0.3)).preprocessing.std == rgb.preprocessing.std


def test_training_images_are_cropped_and_flipped_by_seed_also_after_pickling(tmp_path) -> None:
    ten(tmp_path / "data")
    split = load_data(f"cifar10:{tmp_path / 'data'}").train
    rows, seeds = np.arange(6), np.arange(6, dtype=np.uint64)
    images, _ = split.read(rows, seeds)
    assert not np.array_equal(images, split.read(rows)[0])
    again = pickle.loads(pickle.dumps(split))
    assert np.array_equal(again.read(rows[4:], seeds[4:])[0], images[4:])


class Shell:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Evaluated:
    def __reduce__(self):
        return eval, ("__import__('os').mkdir('sprung')",)


@pytest.mark.parametrize(
    ("trap", "words"),
    [
        (Shell("mkdir sprung"), "would import posix.system"),
        (Evaluated(), "would import __builtin__.eval"),
        (np.zeros(1, [("a", object)]), "no list of class names|no batch of cifar10|not a dict"),
        (np.float64(1), "would import numpy.*.multiarray.scalar"),
        (np.ma.zeros(2), "would import numpy.ma"),
    ],
)
@pytest.mark.parametrize("where", ["batches.meta", "data_batch_2", "whole file"])
def test_a_pickle_with_more_than_arrays_in_it_is_refused_and_runs_nothing(
    tmp_path, monkeypatch, trap, words, where
) -> None:
    monkeypatch.chdir(tmp_path)
    ten(tmp_path / "data")
    content = trap if where == "whole file" else {b"labels": [0], b"data": trap, b"label_names": trap}
    name = "data_batch_2" if where == "whole file" else where
    (tmp_path / "data" / name).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match=rf"{name} .*({words})"):
        load_data(f"cifar10:{tmp_path / 'data'}")
    assert os.listdir(tmp_path) == ["data"]


def batch(**changes):
    return published({"labels": [0, 1, 2, 0], "data": PIXELS[0], **changes})


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data_batch_3", None, "cannot be read: No such file.*unpack cifar-10-python.tar.gz.*cifar10:DIR"),
        ("test_batch", None, "cannot be read"),
        ("batches.meta", None, "cannot be read"),
        ("data_batch_1", b"", "is cut short or no pickle"),
        ("data_batch_1", batch()[:-500], "is cut short or no pickle"),
        ("data_batch_1", b"\x1f\x8b\x08 a gzip file", "is cut short or no pickle"),
        ("data_batch_1", b"text\n", "is cut short or no pickle"),
        ("data_batch_1", pickle.dumps([1, 2]), "holds a list, not a dict"),
        ("data_batch_1", published({"labels": [1]}), r"no batch of cifar10.*'data'"),
        ("data_batch_1", published({"fine_labels": [1], "data": PIXELS[0]}), "no batch of cifar10.*'labels'"),
        ("data_batch_1", batch(data=[1, 2]), "uint8 'data'"),
        ("data_batch_1", batch(data=PIXELS[0].astype(np.float32)), "uint8 'data'"),
        ("data_batch_1", batch(data=np.array([{}, None], object)), "uint8 'data'"),
        ("data_batch_1", batch(data=PIXELS[0, :, :3000]), r"shape \(4, 3000\), not \(n, 3072\)"),
        ("data_batch_1", batch(data=PIXELS[0, 0]), r"shape \(3072,\)"),
        ("data_batch_1", batch(labels=[0, 1, 2]), "4 images, but 'labels' is not a list of as many"),
        ("data_batch_1", batch(labels=PIXELS[0, :, 0]), "not a list"),
        ("data_batch_1", batch(labels=[0, 1, 3, -1]), r"label 3 in row 2; labels are 0\.\.2"),
        ("data_batch_1", batch(labels=[0, 1, 2, -1]), "label -1 in row 3"),
        ("data_batch_1", batch(labels=[0, 1, True, 1.5]), "label True in row 2"),
        ("batches.meta", published({"fine_label_names": NAMES}), "no list of class names 'label_names'"),
        ("batches.meta", published({"label_names": [b"one"]}), "no list of class names"),
        ("batches.meta", published({"label_names": [1, 2, 3]}), "no list of class names"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path, name, content, words) -> None:
    ten(tmp_path / "data")
    (tmp_path / "data" / name).unlink()
    if content is not None:
        (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^\S+/{name} [^\n]*{words}[^\n]*$"):
        load_data(f"cifar10:{tmp_path / 'data'}")


def test_a_train_split_of_one_colour_needs_a_deviation(tmp_path) -> None:
    ten(tmp_path / "data")
    for i in range(5):
        (tmp_path / "data" / f"data_batch_{i + 1}").write_bytes(batch(data=np.zeros((4, 3072), np.uint8)))
    with pytest.raises(InputError, match="pass std"):
        load_data(f"cifar10:{tmp_path / 'data'}")


def test_every_cut_and_changed_byte_is_an_input_error_or_harmless(tmp_path) -> None:
    ten(tmp_path / "data")
    path = tmp_path / "data" / "data_batch_1"
    good = batch(labels=[0], data=PIXELS[0, :1])
    header = good[:230] + good[-60:]
    for at in range(0, 230, 3):
        for value in (0, ord("R"), ord("c"), ord("b"), 255):
            path.write_bytes(good[:at] + bytes([value]) + good[at + 1 :])
            with contextlib.suppress(InputError):
                load_data(f"cifar10:{tmp_path / 'data'}")
        path.write_bytes(header[:at])
        with pytest.raises(InputError, match="data_batch_1"):
            load_data(f"cifar10:{tmp_path / 'data'}")
