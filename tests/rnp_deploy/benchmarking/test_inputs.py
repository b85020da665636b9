"""Images from where users have them; what is wrong with them is said."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from bundles import small_manifest
from rnp_deploy.benchmarking.inputs import Inputs, load_inputs, random_inputs
from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.errors import InputError

GOOD = np.zeros((2, 1, 2, 2), np.float32)
GREY = Preprocessing(colour="L", size=(2, 2), mean=(0.5,), std=(0.5,))


@pytest.fixture
def manifest():
    return small_manifest().model_copy(update={"preprocessing": GREY, "classes": ("ant", "bee", "cat")})


def write_images(folder, names):
    for value, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), 5 * value % 256, np.uint8)).save(path)


def test_random_inputs_are_the_same_for_a_seed(manifest):
    first, second, other = (random_inputs(manifest, 3, seed) for seed in (0, 0, 1))
    assert first.images.shape == (3, *manifest.inputs[0].shape)
    assert first.images.dtype == np.float32
    assert np.array_equal(first.images, second.images)
    assert not np.array_equal(first.images, other.images)
    assert first.described().stamp == "random inputs: the decisions mean nothing"


def test_arrays_with_and_without_labels(manifest, tmp_path):
    images = np.arange(8, dtype=np.float32).reshape(GOOD.shape)
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([2, 1], np.uint8))
    alone, labelled = (load_inputs(str(tmp_path / name), manifest, 1) for name in ("a.npy", "a.npz"))
    assert np.array_equal(alone.images, images)
    assert alone.labels is None
    assert labelled.labels.tolist() == [2, 1]
    assert (alone.described().images, alone.described().labelled, alone.described().stamp) == (2, False, None)
    assert labelled.described().labelled


def test_the_hash_is_of_every_image_and_label():
    labels = np.array([0, 1])
    hashes = {
        Inputs("a", *arrays).described().sha256
        for arrays in (
            (GOOD,),
            (GOOD + 1,),
            (GOOD.reshape(2, 2, 1, 2),),
            (GOOD, labels),
            (GOOD, labels[::-1]),
        )
    }
    assert len(hashes) == 5
    assert Inputs("b", GOOD).described().sha256 == Inputs("a", GOOD[::1].copy()).described().sha256


def test_a_folder_of_images_is_read_whole_or_evenly(manifest, tmp_path):
    write_images(tmp_path, [f"deep/er/{i}.png" for i in range(6)])
    (tmp_path / "notes.txt").write_text("no image")
    every = load_inputs(str(tmp_path), manifest, 100)
    assert every.labels is None
    assert every.name == str(tmp_path)
    expected = (np.arange(6) * 5 / 255 - 0.5) / 0.5
    assert np.sort(every.images[:, 0, 0, 0]) == pytest.approx(expected, abs=1e-6)
    some = load_inputs(str(tmp_path), manifest, 3)
    assert np.sort(some.images[:, 0, 0, 0]) == pytest.approx(expected[::2], abs=1e-6)


def test_folders_named_like_classes_are_labels(manifest, tmp_path):
    write_images(tmp_path, ["cat/1.png", "ant/1.png", "val/ant/2.JPG"])
    inputs = load_inputs(str(tmp_path), manifest, 9)
    values = (5 * np.arange(3) / 255 - 0.5) / 0.5  # of the files as they were written
    labels = {
        round(float(v), 4): int(k) for v, k in zip(inputs.images[:, 0, 0, 0], inputs.labels, strict=True)
    }
    assert labels == {round(float(v), 4): k for v, k in zip(values, (2, 0, 0), strict=True)}
    (tmp_path / "ant/._1.png").write_bytes(b"not an image, but what macOS leaves")
    assert len(load_inputs(str(tmp_path), manifest, 9).images) == 3
    write_images(tmp_path, ["dog/1.png"])
    assert load_inputs(str(tmp_path), manifest, 9).labels is None


@pytest.mark.parametrize("prefix", ["", "folder:"])
def test_the_first_images_of_a_folder_are_not_of_one_class(manifest, tmp_path, prefix):
    write_images(
        tmp_path,
        [f"{part}/{name}/{i}.png" for part in ("train", "val") for name in ("ant", "bee") for i in range(20)],
    )
    folder = tmp_path if prefix else tmp_path / "val"
    first, again = (load_inputs(f"{prefix}{folder}", manifest, 40) for _ in range(2))
    assert 5 <= first.labels[:20].sum() <= 15
    assert first.described() == again.described()


def test_the_held_out_split_of_a_data_set_has_the_networks_classes(manifest):
    of_others = load_inputs("digits", manifest, 7)
    assert (of_others.images.shape, of_others.labels) == ((7, 1, 2, 2), None)
    unnamed, forth, back = (
        load_inputs("digits", manifest.model_copy(update={"classes": classes}), 7).labels
        for classes in (None, tuple("0123456789"), tuple("9876543210"))
    )
    assert unnamed.shape == (7,)
    assert unnamed.tolist() == forth.tolist() == (9 - back).tolist()


class Trap:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("data.npy", None, "data.npy cannot be read"),
        ("data.npy", b"", "data.npy cannot be read"),
        ("data.npy", b"text", "data.npy cannot be read"),
        ("data.npy", npy(GOOD)[:-1], "data.npy cannot be read"),
        ("data.npy", npy(GOOD[:0]), "0 images"),
        ("data.npy", npy(np.float32(1)), "0 images"),
        ("data.npz", b"", "data.npz cannot be read"),
        ("data.npz", b"PK\x03\x04 and no more", "data.npz cannot be read"),
        ("data.npz", npz(images=GOOD)[:-30], "data.npz cannot be read"),
        ("data.npz", npz(images=GOOD).replace(GOOD.tobytes(), b"\1" * GOOD.nbytes), "cannot be read"),
        ("data.npz", npz(pictures=GOOD), "images"),
        ("data.npz", npz(images=GOOD, labels=np.zeros(3, int)), "(3,) for 2 images"),
        ("data.npz", npz(images=GOOD, labels=np.zeros((2, 1), int)), "labels"),
        ("data.npz", npz(images=GOOD, labels=np.array(0)), "labels"),
        ("data.npz", npz(images=GOOD, labels=np.zeros(2)), "type float64; pass class indices"),
        ("data.npz", npz(images=GOOD, labels=np.array(["ant", "bee"])), "type <U3"),
        ("data.npz", npz(images=GOOD, labels=np.array([0, -1])), "labels -1..0; those of 3 classes are 0..2"),
        ("data.npz", npz(images=GOOD, labels=np.array([0, 3])), "labels 0..3"),
        ("nowhere", None, "there are no images at"),
        ("data.png", b"no image", "there are no images at"),
        ("folder/a.png", b"no image", "a.png cannot be read as an image"),
        ("folder/a.txt", b"no image", "folder has no images (.bmp"),
    ],
)
def test_bad_data(manifest, tmp_path, name, data, words):
    path = tmp_path / name
    if data is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    asked = path.parent if path.parent != tmp_path else path
    with pytest.raises(InputError) as caught:
        load_inputs(str(asked), manifest, 9)
    assert words in str(caught.value)


def test_a_folder_for_a_network_that_takes_no_images(tmp_path):
    write_images(tmp_path, ["a.png"])
    with pytest.raises(InputError, match=r"\.npy"):
        load_inputs(str(tmp_path), small_manifest(), 9)


@pytest.mark.parametrize("name", ["data.npy", "data.npz"])
def test_pickled_data_is_not_executed(manifest, tmp_path, name):
    trap = np.array([Trap(tmp_path / "sprung")], object)
    for data in (pickle.dumps(trap), npy(trap, allow_pickle=True), npz(images=trap)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="cannot be read"):
            load_inputs(str(tmp_path / name), manifest, 9)
        assert not (tmp_path / "sprung").exists()
