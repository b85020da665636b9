"""rnp-run: image files in, classes and options out."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from bundles import bundle_copy, edit_manifest
from commands import failure, json_report, success
from rnp_deploy import Controller
from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.preprocessing import read_images
from rnp_deploy.tools.run import main

PREPROCESSING = Preprocessing(colour="RGB", size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
CLASSES = [f"class {i}" for i in range(10)]


@pytest.fixture
def bundle(exported, tmp_path):
    """The chain network, and how image files become its inputs."""
    path = bundle_copy(exported("chain").path, tmp_path / "bundle")
    preprocessing = PREPROCESSING.model_dump(mode="json")
    edit_manifest(path, lambda raw: raw.update(preprocessing=preprocessing, classes=CLASSES))
    return path


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in "cab"]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ([], {}),
        (["--penalty", "0"], {"penalty": 0.0}),
        (["--penalty", "-5", "--threads", "1"], {"penalty": -5.0}),
        (["--options", "4,2,1"], {"options": [[4, 2, 1]] * 3}),
        (["--backend", "torch", "--device", "cpu"], {}),
    ],
    ids=" ".join,
)
def test_it_reports_what_the_controller_gives_in_the_order_of_the_files(bundle, images, flags, arguments):
    rows = json_report(main, [bundle, *images, *flags])
    with Controller.load(bundle) as controller:
        result = controller.run(read_images(images, PREPROCESSING), **arguments)
        total = controller.manifest.macs
    exponents = np.exp(result.outputs.astype(np.float64))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    best = result.outputs.argmax(axis=1)
    assert [row["image"] for row in rows] == [str(path) for path in images]
    assert [row["options"] for row in rows] == result.options.tolist()
    assert [row["macs"] for row in rows] == result.macs.tolist()
    assert [row["macs_share"] for row in rows] == pytest.approx(result.macs / total)
    assert [row["class_index"] for row in rows] == best.tolist()
    assert [row["class"] for row in rows] == [CLASSES[i] for i in best]
    assert [row["probability"] for row in rows] == pytest.approx(probabilities.max(axis=1), rel=1e-4)


def test_a_target_takes_the_calibrated_penalty(bundle, images):
    assert "needs a calibration" in failure(main, [bundle, *images, "--target-macs", "0.5"])
    points = [
        {"penalty": p, "accuracy": 1.0, "macs_share": m, "option_counts": [[1]]}
        for p, m in ((0, 1.0), (2, 0.2))
    ]
    shares = {"backbone_accuracy": 1.0, "full_accuracy": 1.0}
    calibration = {"data": "any:test", "samples": 1, **shares, "points": points}
    edit_manifest(bundle, lambda raw: raw.update(calibration=calibration))
    rows = json_report(main, [bundle, *images, "--target-macs", "0.6"])
    assert rows == json_report(main, [bundle, *images, "--penalty", "1.0"])
    assert "the cheapest calibrated point takes 0.2" in failure(
        main, [bundle, *images, "--target-macs", "0.1"]
    )


def test_without_class_names_the_index_is_the_class(bundle, images):
    edit_manifest(bundle, lambda raw: raw.update(classes=None))
    for row in json_report(main, [bundle, *images]):
        assert row["class"] == str(row["class_index"])


def test_people_get_a_line_an_image(bundle, images):
    lines = success(main, [bundle, *images, "--options", "1,4,2"]).stdout.splitlines()
    assert len(lines) == 3
    for line, path in zip(lines, images, strict=True):
        assert line.startswith(f"{path}: class ")
        assert "options 1,4,2," in line
        assert "% of the MACs" in line


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--options", "1,2"], "pass integers of shape (3, 3)"),
        (["--options", "1,2,5"], "this network takes 1..4"),
        (["--options", "1;2;3"], "parted by commas"),
        (["--options", ""], "parted by commas"),
        (["--penalty", "nan"], "penalty is not finite"),
        (["--penalty", "inf"], "penalty is not finite"),
        (["nowhere.png"], "nowhere.png cannot be read"),
    ],
    ids=str,
)
def test_bad_arguments(bundle, images, arguments, words, flags):
    assert words in failure(main, [bundle, *images, *arguments, *flags])


def test_a_file_that_is_no_image(bundle, images):
    images[1].write_text("text")
    assert f"{images[1]} cannot be read as an image" in failure(main, [bundle, *images])


def test_a_bundle_that_does_not_know_about_image_files(exported, images):
    assert "call Controller.run with arrays" in failure(main, [exported("chain").path, *images])


def test_a_missing_bundle(tmp_path, images):
    assert "nowhere does not exist" in failure(main, [tmp_path / "nowhere", *images])


def test_a_damaged_bundle(bundle, images):
    with (bundle / "weights.bin").open("ab") as stream:
        stream.write(b"\0")
    assert "weights.bin" in failure(main, [bundle, *images])


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["only", "two"]},
        {"preprocessing": {**PREPROCESSING.model_dump(mode="json"), "size": [8, 8]}},
        {"preprocessing": {"colour": "L", "size": [16, 16], "mean": [0], "std": [1]}},
    ],
    ids=["too few classes", "other size", "other channels"],
)
def test_a_bundle_at_odds_with_itself(bundle, images, change):
    edit_manifest(bundle, lambda raw: raw.update(change))
    failure(main, [bundle, *images, "--json"])


def test_without_a_runtime_the_line_names_the_extra(bundle, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "rnp-deploy[cpu]" in failure(main, [bundle, *images])
