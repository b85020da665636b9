"""rnp_classify: images become inputs as Pillow makes them, and classes as the Python controller gives."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from rnp_deploy import Controller
from rnp_deploy.preprocessing import image_array, make_preprocessing, read_images
from served_network import export_served
from serving_build import built, environment

#: The first test to need the C++ programs builds them.
pytestmark = pytest.mark.timeout(1500)

SIZES = [(1, 1), (7, 3), (16, 16), (18, 16), (31, 64), (200, 33), (97, 251)]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("classified") / "bundle"
    export_served(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Grey and colour images of many sizes as binary and plain netpbm."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(7)
    paths = []
    for width, height in SIZES:
        for mode, suffix in (("L", "pgm"), ("RGB", "ppm")):
            shape = (height, width) if mode == "L" else (height, width, 3)
            pixels = generator.integers(0, 256, shape, dtype=np.uint8)
            binary = folder / f"{width}x{height}.{suffix}"
            Image.fromarray(pixels, mode).save(binary)
            plain = folder / f"{width}x{height}-plain.{suffix}"
            magic = "P2" if mode == "L" else "P3"
            values = " ".join(map(str, pixels.ravel()))
            plain.write_text(f"{magic} # comment\n{width} {height}\n255\n{values}\n")
            paths += [binary, plain]
    return paths


@pytest.fixture
def width_first(monkeypatch):
    """Pillow resizes the width first, as every version did before 13, and later ones do for most shapes."""
    resize = Image.Image.resize

    def in_two(image, size, resample, box=None):
        assert box is None
        return resize(resize(image, (size[0], image.height), resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", in_two)


def test_whatever_pillow_resizes_first_pixels_are_within_one(files):
    preprocessing = make_preprocessing(colour="L", size=(16, 16), mean=(0.0,), std=(1.0,))
    for path in files:
        wanted = read_images([path], preprocessing)[0]
        found = prepared(path, "L", (16, 16), None).reshape(wanted.shape)
        # The program's own mean and deviation are undone.
        assert np.abs((found * 0.5 + 0.25 - wanted) * 255).max() < 1.01


def prepared(path, colour, size, shorter_side):
    command = [built("asan") / "rnp_preprocess", path, colour, *map(str, size), str(shorter_side or 0)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment("asan"))
    assert done.returncode == 0, done.stderr.decode()
    return np.frombuffer(done.stdout, np.float32)


@pytest.mark.usefixtures("width_first")
@pytest.mark.parametrize("colour", ["L", "RGB", "BGR"])
@pytest.mark.parametrize(
    ("size", "shorter_side"),
    [((16, 16), None), ((5, 40), None), ((16, 16), 16), ((15, 9), 21), ((224, 224), 256)],
)
def test_inputs_are_those_pillow_makes(files, colour, size, shorter_side):
    channels = 1 if colour == "L" else 3
    preprocessing = make_preprocessing(
        colour=colour,
        size=size,
        shorter_side=shorter_side,
        mean=(0.25, 0.5, 0.125)[:channels],
        std=(0.5, 0.3, 0.7)[:channels],
    )
    for path in files:
        with Image.open(path) as image:
            wanted = image_array(image, preprocessing)
        found = prepared(path, colour, size, shorter_side).reshape(wanted.shape)
        np.testing.assert_array_equal(found, wanted, err_msg=str(path))


def classified(package, file, *options):
    command = [built("plain") / "rnp_classify", package, file, *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.usefixtures("width_first")
@pytest.mark.parametrize("options", [[], ["--penalty", 0.4], ["--target-macs", 0.3, "--threads", 1]])
def test_an_image_is_classified_as_in_python(package, files, options):
    run = dict(zip(("penalty",), options[1:], strict=False)) if "--penalty" in options else {}
    run |= {"target_macs": 0.3} if "--target-macs" in options else {}
    with Controller.load(package, "onnxruntime", "cpu", 1) as controller:
        for path in files[::5]:
            wanted = controller.run(read_images([path], controller.manifest.preprocessing), **run)
            done = classified(package, path, *options, "--json")
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            best = int(wanted.outputs[0].argmax())
            assert (found["class_index"], found["class"]) == (best, f'class "{best}"')
            assert found["options"] == wanted.options[0].tolist()
            np.testing.assert_allclose(found["outputs"], wanted.outputs[0], atol=1e-5)
            exponents = np.exp(wanted.outputs[0] - wanted.outputs[0].max())
            assert found["probability"] == pytest.approx(1 / exponents.sum(), rel=1e-4)
            assert found["macs"] == wanted.macs[0]


def test_a_tensor_is_classified_and_told_in_words(package, tmp_path):
    image = np.random.default_rng(1).standard_normal((1, 1, 16, 16), dtype=np.float32)
    file = tmp_path / "input.raw"
    file.write_bytes(image.tobytes())
    with Controller.load(package, "onnxruntime", "cpu", 1) as controller:
        wanted = controller.run(image)
        manifest = controller.manifest
    done = classified(package, file)
    lines = done.stdout.splitlines()
    share = 100 * wanted.macs[0] / manifest.macs
    assert lines[0].startswith(f'{file}: class "{wanted.outputs[0].argmax()}" (p=0.')
    assert lines[0].endswith(f", {share:.1f} % of the MACs")
    assert lines[1:] == [
        f"  {decision.conv}: option {option} of 4"
        for decision, option in zip(manifest.decisions, wanted.options[0], strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("a.raw", b"1234", [], "expected 1024 bytes, float32 [1, 16, 16]; got 4"),
        ("a.png", b"\x89PNG", [], "convert it to PGM or PPM"),
        ("a.pgm", b"P5 1000 1000 255\n", [], "cut off"),
        ("a.pgm", b"P5 1 1 65535\n11", [], "8 bits"),
        ("a.pgm", b"P5 1 1 255\n1", ["--target-macs", "0.01"], "target_macs"),
        ("a.pgm", b"P5 1 1 255\n1", ["--penalty", "1", "--target-macs", "0.5"], "pass one of them"),
        ("a.pgm", b"P5 1 1 255\n1", ["--penalty", "x"], '--penalty is "x"'),
    ],
)
def test_what_does_not_fit_is_told(package, tmp_path, name, content, options, words):
    file = tmp_path / name
    file.write_bytes(content)
    done = classified(package, file, *options)
    assert (done.returncode, done.stdout, words in done.stderr) == (1, "", True), done.stderr


def test_usage(package):
    assert classified(package, "a", "b").returncode == 2
    assert classified(package, package / "none.pgm").returncode == 1
    assert "rnp_classify PACKAGE FILE" in classified(package, "--help").stdout
