"""Thumbnails, decoded again; and which images are shown."""

from __future__ import annotations

import base64
import io
import sys

import numpy as np
import pytest
from PIL import Image

from rnp_deploy.benchmarking.thumbnails import image_reports, thumbnail
from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.bundle.reading import read_manifest
from rnp_deploy.errors import MissingRuntimeError
from rnp_deploy.preprocessing import image_array


def decoded(text):
    with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


@pytest.mark.parametrize("colour", ["L", "RGB", "BGR"])
def test_preprocessing_is_undone(colour):
    channels = 1 if colour == "L" else 3
    wanted = np.random.default_rng(0).integers(0, 256, (6, 9, channels)).astype(np.uint8)
    mean, std = (0.2, 0.4, 0.6)[:channels], (0.2, 0.3, 0.5)[:channels]
    preprocessing = Preprocessing(colour=colour, size=(6, 9), mean=mean, std=std)
    picture = Image.fromarray(wanted[:, :, 0] if channels == 1 else wanted)
    found = decoded(thumbnail(image_array(picture, preprocessing), preprocessing))
    np.testing.assert_array_equal(found, np.asarray(picture))


def test_values_beyond_black_and_white_stay_black_and_white():
    preprocessing = Preprocessing(colour="L", size=(1, 3), mean=(0.0,), std=(1.0,))
    image = np.array([[[-3, 0.5, 7]]], np.float32)
    assert decoded(thumbnail(image, preprocessing)).tolist() == [[0, 128, 255]]


@pytest.mark.filterwarnings("error")
def test_without_preprocessing_the_values_are_stretched():
    image = np.array([[[-2, 0]], [[0, 2]], [[2, -2]]], np.float32)
    assert decoded(thumbnail(image, None)).tolist() == [[[0, 128, 255], [128, 255, 0]]]
    assert decoded(thumbnail(np.full((1, 2, 2), 3e38, np.float32), None)).tolist() == [[0, 0], [0, 0]]
    widest = np.array([[[-3e38, 3e38]]], np.float32)
    assert decoded(thumbnail(widest, None)).tolist() == [[0, 255]]


@pytest.mark.parametrize("channels", [2, 4])
def test_of_other_channel_counts_the_first_is_grey(channels):
    image = np.zeros((channels, 1, 2), np.float32)
    image[0, 0, 1], image[1] = 1, 9
    assert decoded(thumbnail(image, None)).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("size", "shown"), [((200, 100), (96, 48)), ((96, 30), (96, 30)), ((97, 97), (96, 96)), ((1, 400), (1, 96))]
)  # fmt: skip
def test_large_images_shrink_and_small_ones_stay(size, shown):
    assert decoded(thumbnail(np.zeros((3, *size), np.float32), None)).shape[:2] == shown


def test_without_pillow_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingRuntimeError, match=r"rnp-deploy\[bench\]"):
        thumbnail(np.zeros((3, 2, 2), np.float32), None)


def test_without_pillow_images_are_told_of_without_a_picture(shown, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    reports, _ = shown
    cheapest, dearest = reports([1, 2])
    assert [(one.index, one.thumbnail) for one in (*cheapest, *dearest)] == [(0, None), (1, None)]


@pytest.fixture
def shown(exported):
    manifest = read_manifest(exported("chain").path)

    def reports(macs, labels=None, classes=None, most=8):
        n = len(macs)
        images = np.random.default_rng(0).random((n, *manifest.inputs[0].shape), np.float32)
        options = np.arange(3 * n).reshape(n, 3) % 4 + 1
        outputs = np.eye(10, dtype=np.float32)[np.arange(n) % 10]
        return image_reports(
            images, labels, options, np.array(macs), outputs, manifest.model_copy(update={"classes": classes}), most
        )  # fmt: skip

    return reports, manifest


def indices(reports):
    return tuple([one.index for one in images] for images in reports)


@pytest.mark.parametrize(
    ("macs", "cheapest", "dearest"),
    [
        ([5, 1, 3, 4, 2, 9], [1, 4], [5, 0]),
        ([1, 1, 1, 1, 1, 1], [0, 1], [2, 3]),
        ([2, 1, 2, 1, 2, 1], [1, 3], [0, 2]),
        ([3, 1, 2], [1, 2], [0]),
        ([7], [0], []),
    ],
)
def test_ties_go_by_index_and_no_image_is_in_both(shown, macs, cheapest, dearest):
    reports, _ = shown
    assert indices(reports(macs, most=2)) == (cheapest, dearest)


def test_eight_of_each_are_shown(shown):
    reports, _ = shown
    assert [len(images) for images in reports(list(range(20)))] == [8, 8]


def test_what_is_said_of_an_image(shown):
    reports, manifest = shown
    names = tuple("abcdefghij")
    (first,), (last,) = reports([manifest.macs // 2, 2 * manifest.macs], np.array([3, -1]), names)
    assert (first.predicted, first.label, last.predicted, last.label) == ("a", "d", "b", "-1")
    assert (first.options, last.options) == ((1, 2, 3), (4, 1, 2))
    assert (first.macs_share, last.macs_share) == (pytest.approx(0.5, rel=1e-3), 2.0)
    assert decoded(first.thumbnail).shape == (16, 16, 3)
    (first,), (last,) = reports([1, 2], np.array([3, 10]))
    assert (first.predicted, first.label, last.predicted, last.label) == ("0", "3", "1", "10")
    assert reports([1, 2])[0][0].label is None
