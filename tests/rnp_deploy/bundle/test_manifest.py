"""The manifest as values: written and read, asked for branches, checked when made."""

from __future__ import annotations

import itertools
import json

import pytest
from pydantic import ValidationError

from bundles import small_manifest
from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.bundle.manifest import Manifest, Preprocessing, TensorManifest
from rnp_deploy.bundle.reading import read_manifest
from rnp_deploy.bundle.writing import describe_files, save_manifest

GREY = {"colour": "L", "size": (2, 2), "mean": (0.5,), "std": (0.25,)}
CALIBRATION = Calibration(
    data="hand-made",
    samples=4,
    backbone_accuracy=0.75,
    full_accuracy=0.7,
    points=(CalibrationPoint(penalty=-0.1, accuracy=1 / 3, macs_share=0.1, option_counts=((1, 3), (4, 0))),),
)


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"preprocessing": Preprocessing(**GREY), "classes": ("nought", "één", "二")},
        {"calibration": CALIBRATION},
        {"macs": 2**62},
    ],
    ids=["bare", "preprocessing", "calibration", "large numbers"],
)
def test_what_is_saved_is_read(tmp_path, update):
    manifest = small_manifest().model_copy(update=update)
    save_manifest(manifest, tmp_path)
    assert read_manifest(tmp_path) == manifest


def test_a_saved_manifest_is_the_same_bytes_each_time(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_manifest(small_manifest(), tmp_path / name)
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_files_are_described_by_posix_path_size_and_hash(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/c.onnx").write_bytes(b"abc")
    (tmp_path / "a.bin").write_bytes(b"")
    (tmp_path / "manifest.json").write_text("{}")
    described = [file.model_dump() for file in describe_files(tmp_path)]
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert described == [
        {"path": "a.bin", "bytes": 0, "sha256": nothing},
        {"path": "b/c.onnx", "bytes": 3, "sha256": abc},
    ]


@pytest.mark.parametrize("options", list(itertools.product((1, 2), repeat=2)))
def test_the_branches_and_macs_of_a_path(options):
    manifest = small_manifest()
    a, b = options
    assert [manifest.branch(s, options).file for s in range(3)] == [
        "s0/full.onnx", f"s1/{a}.onnx", f"s2/{a}-{b}.onnx",
    ]  # fmt: skip
    assert manifest.path_macs(options) == 1000 + 100 * a + 10 * a + b


def test_branches_are_counted():
    assert small_manifest().branch_count() == 7


def test_the_full_path_of_a_real_bundle_has_the_networks_macs(exported):
    manifest = read_manifest(exported("chain").path)
    assert manifest.path_macs([manifest.groups] * len(manifest.decisions)) == manifest.macs


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "RGB"}, "3 values for colour RGB"),
        ({"colour": "BGR"}, "colour"),
        ({"mean": (0.5, 0.5)}, "1 values for colour L"),
        ({"std": ()}, "1 values for colour L"),
        ({"std": (0.0,)}, "greater than 0"),
        ({"std": (-1.0,)}, "greater than 0"),
        ({"std": (float("inf"),)}, "finite"),
        ({"mean": (float("nan"),)}, "finite"),
        ({"size": (0, 2)}, "greater than or equal to 1"),
        ({"size": (2,)}, "size"),
        ({"gamma": 2.2}, "gamma"),
    ],
    ids=str,
)
def test_bad_preprocessing(change, words):
    with pytest.raises(ValidationError, match=words):
        Preprocessing(**{**GREY, **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": ()}, "inputs"),
        ({"groups": 1}, "greater than or equal to 2"),
        ({"groups": 3}, "no decision has 3 options"),
        ({"decisions": ()}, "decisions"),
        ({"outputs": ({"name": "x9", "shape": (3,)},)}, "no stage makes the output 'x9'"),
        ({"outputs": ({"name": "outputs", "shape": (4,)},)}, "no stage makes the output 'outputs'"),
        ({"classes": ("cat", "dog")}, "classes"),
        ({"preprocessing": Preprocessing(**{**GREY, "size": (2, 3)}).model_dump()}, "preprocessing"),
    ],
    ids=str,
)
def test_bad_manifests(change, words):
    with pytest.raises(ValidationError, match=words):
        Manifest.model_validate({**small_manifest().model_dump(), **change})


def test_the_hand_made_manifest_is_valid():
    """Or the table above could fail for another reason than its own."""
    Manifest.model_validate(json.loads(small_manifest().model_dump_json()), strict=False)


def test_values_cannot_be_changed():
    tensor = TensorManifest(name="x", shape=(1,))
    with pytest.raises(ValidationError, match="frozen"):
        tensor.name = "y"
