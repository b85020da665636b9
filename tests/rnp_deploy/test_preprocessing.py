"""Image files become inputs as the manifest says; values computed by hand."""

from __future__ import annotations

import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.errors import InputError, MissingRuntimeError
from rnp_deploy.preprocessing import image_array, open_image, read_images

PIXELS = np.array([[[0, 51, 102], [255, 204, 153]], [[51, 51, 51], [0, 0, 255]]], np.uint8)  # [H, W, RGB]
RGB = Preprocessing(colour="RGB", size=(2, 2), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
GREY = Preprocessing(colour="L", size=(2, 2), mean=(0.2,), std=(0.1,))


def saved(tmp_path, pixels, name="a.png"):
    Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path / name


def test_rgb_is_scaled_and_normalised_channel_by_channel(tmp_path):
    expected = [
        [[0.0, 1.0], [0.2, 0.0]],
        [[-0.6, 0.6], [-0.6, -1.0]],
        [[-0.3, -0.2], [-0.4, 0.0]],
    ]
    images = read_images([saved(tmp_path, PIXELS)], RGB)
    assert images.shape == (1, 3, 2, 2)
    assert images.dtype == np.float32
    assert images.flags.c_contiguous
    np.testing.assert_allclose(images[0], expected, atol=1e-6)


def test_grey_stays_grey(tmp_path):
    images = read_images([saved(tmp_path, np.array([[0, 51], [102, 255]], np.uint8))], GREY)
    np.testing.assert_allclose(images, [[[[-2, 0], [2, 8]]]], atol=1e-5)


def test_colour_becomes_grey_by_luma(tmp_path):
    red_green_blue_grey = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [51, 51, 51]]], np.uint8)
    plain = GREY.model_copy(update={"mean": (0.0,), "std": (1.0,)})
    images = read_images([saved(tmp_path, red_green_blue_grey)], plain)
    np.testing.assert_allclose(images[0, 0], [[0.299, 0.587], [0.114, 0.2]], atol=0.5 / 255)


def test_grey_becomes_three_equal_channels(tmp_path):
    plain = RGB.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})
    images = read_images([saved(tmp_path, np.full((2, 2), 51, np.uint8))], plain)
    np.testing.assert_allclose(images, np.full((1, 3, 2, 2), 0.2), atol=1e-6)


def test_size_is_height_then_width(tmp_path):
    """Columns 10 and 30 average to 20, rows stay apart."""
    pixels = np.array([[10, 30], [50, 70], [0, 100]], np.uint8)
    one_column = Preprocessing(colour="L", size=(3, 1), mean=(0.0,), std=(1.0,))
    images = read_images([saved(tmp_path, pixels)], one_column)
    np.testing.assert_allclose(images[0] * 255, [[[20], [60], [50]]], atol=1e-4)


def test_enlarging_is_bilinear():
    image = Image.fromarray(np.array([[0, 100]], np.uint8))
    wide = Preprocessing(colour="L", size=(1, 4), mean=(0.0,), std=(1.0,))
    np.testing.assert_allclose(image_array(image, wide)[0, 0] * 255, [0, 25, 75, 100], atol=1e-4)


def test_a_batch_keeps_the_order_of_the_files(tmp_path):
    paths = [saved(tmp_path, np.full((2, 2), value, np.uint8), f"{value}.png") for value in (51, 0, 255)]
    np.testing.assert_allclose(read_images(paths, GREY)[:, 0, 0, 0], [0, -2, 8], atol=1e-5)


def text(path):
    path.write_text("not an image")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-30])


def empty(path):
    path.write_bytes(b"")


def folder(path):
    path.unlink()
    path.mkdir()


def broken_chunk(path):
    """The pixels' chunk ends halfway, and no other begins there."""
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT")
    half = int.from_bytes(data[at - 4 : at], "big") // 2
    data[at - 4 : at] = half.to_bytes(4, "big")
    data[at + 4 + half : at + 8 + half] = zlib.crc32(data[at : at + 4 + half]).to_bytes(4, "big")
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [text, truncated, empty, folder, broken_chunk])
def test_files_that_are_no_images_are_named(tmp_path, damage):
    good = saved(tmp_path, PIXELS, "good.png")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    bad = saved(tmp_path, noise, "bad.png")
    damage(bad)
    with pytest.raises(InputError, match=r"bad\.png cannot be read as an image"):
        read_images([good, bad], RGB)


def test_a_header_alone_does_not_tell_that_pixels_are_missing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = saved(tmp_path, noise, "bad.png")
    truncated(path)
    assert open_image(path, pixels=False).size == (40, 40)
    with pytest.raises(InputError, match=r"bad\.png cannot be read"):
        open_image(path)
    text(path)
    with pytest.raises(InputError, match=r"bad\.png cannot be read"):
        open_image(path, pixels=False)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.png cannot be read"):
        read_images([tmp_path / "nowhere.png"], RGB)


def test_an_image_too_large_to_be_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(InputError, match=r"a\.png cannot be read"):
        read_images([saved(tmp_path, PIXELS)], RGB)


def test_no_file_is_no_batch():
    with pytest.raises(InputError, match="at least one"):
        read_images([], RGB)


def test_without_pillow_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = saved(tmp_path, PIXELS)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingRuntimeError, match="pip install"):
        read_images([path], RGB)


def ramp(height, width, along):
    """An image whose pixels are their own row or column, whichever ``along`` is, in steps of 10."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray((10 * (rows if along == "rows" else columns)).astype(np.uint8))


def middle(size, shorter_side):
    return Preprocessing(colour="L", size=size, shorter_side=shorter_side, mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize(
    ("image", "size", "shorter_side", "expected"),
    [
        (ramp(4, 8, "columns"), (4, 4), 4, [[20, 30, 40, 50]] * 4),
        (ramp(8, 4, "rows"), (4, 4), 4, [[20] * 4, [30] * 4, [40] * 4, [50] * 4]),
        (ramp(6, 6, "columns"), (2, 4), 6, [[10, 20, 30, 40]] * 2),
        (ramp(4, 9, "columns"), (4, 1), 4, [[40]] * 4),
    ],
    ids=["wide", "high", "square", "odd"],
)
def test_the_middle_is_cut_out_where_nothing_is_resized(image, size, shorter_side, expected):
    result = image_array(image, middle(size, shorter_side))
    np.testing.assert_allclose(result[0] * 255, expected, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(20, 40), (40, 20), (21, 33), (300, 7), (5, 5)])
def test_proportions_are_kept(height, width):
    """A centred square a quarter as wide as the shorter side stays a centred square."""
    side = min(height, width)
    pixels = np.zeros((8 * height, 8 * width), np.uint8)
    top, left = 4 * height - side, 4 * width - side
    pixels[top : top + 2 * side, left : left + 2 * side] = 255
    result = image_array(Image.fromarray(pixels), middle((32, 32), 40))[0]
    assert np.abs(result - result[::-1]).max() < 0.2
    assert abs(float(result.sum()) - 100) < 12  # a quarter of 40, squared
    rows, columns = result.sum(1), result.sum(0)
    assert np.abs(rows - columns).max() < 2


def test_a_box_is_resized_in_place_of_the_whole_or_the_middle():
    box = (2, 1, 4, 3)
    for wanted in (middle((2, 2), 3), middle((2, 2), None)):
        result = image_array(ramp(6, 8, "columns"), wanted, box)
        np.testing.assert_allclose(result[0] * 255, [[20, 30]] * 2, atol=1e-4)


def test_without_a_shorter_side_proportions_are_not_kept():
    image = ramp(1, 2, "columns").resize((8, 4), Image.Resampling.NEAREST)
    plain = Preprocessing(colour="L", size=(4, 4), mean=(0.0,), std=(1.0,))
    assert image_array(image, plain)[0, 0, 0] == 0
    assert image_array(image, plain)[0, 0, 3] * 255 == pytest.approx(10)


def test_a_shorter_side_of_torchvision_is_what_torchvision_computes():
    from torchvision_models import torchvision

    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    given = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    expected = torchvision.transforms._presets.ImageClassification(crop_size=24, resize_size=28, **given)(
        image
    )
    ours = image_array(image, Preprocessing(colour="RGB", size=(24, 24), shorter_side=28, **given))
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def test_bgr_reverses_the_channels_and_not_their_mean_and_deviation(tmp_path):
    path = saved(tmp_path, np.array([[[51, 102, 255]]], np.uint8))
    bgr = Preprocessing(colour="BGR", size=(1, 1), mean=(0.0, 0.2, 0.1), std=(1.0, 0.5, 0.1))
    np.testing.assert_allclose(read_images([path], bgr)[0, :, 0, 0], [1.0, 0.4, 1.0], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shorter_side": 3}, "shorter_side 3 is less than the size"),
        ({"shorter_side": 0}, "shorter_side"),
        ({"size": (4, 8), "shorter_side": 7}, "less than the size"),
        ({"colour": "BGR"}, "need 3 values for colour BGR"),
        ({"mean": (0.5,) * 3}, "need 1 values for colour L"),
        ({"colour": "CMYK"}, "'L', 'RGB' or 'BGR'"),
        ({"std": (0.0,)}, "greater than 0"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"size": (0, 4)}, "size"),
    ],
)
def test_preprocessing_that_cannot_be_is_refused(change, words):
    with pytest.raises(ValidationError, match=words):
        Preprocessing(**{"colour": "L", "size": (4, 4), "mean": (0.5,), "std": (0.5,), **change})
