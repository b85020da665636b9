"""rnp-bench: the report and its inputs; never the times."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from commands import failure, json_report, success
from rnp_deploy import Controller
from rnp_deploy.tools.bench import main

QUICK = ["--duration-s", "0", "--min-runs", "1", "--threads", "1"]
STAMP = "random inputs: the decisions mean nothing"


@pytest.fixture
def bundle(exported):
    return exported("chain").path


@pytest.fixture
def images(exported):
    return exported("chain").images(6).numpy()


@pytest.fixture
def labels(bundle, images):
    """What the dense network says, but for the last."""
    with Controller.load(bundle) as controller:
        dense = controller.run(images, options=np.full((6, 3), 4)).outputs.argmax(axis=1)
    dense[-1] = (dense[-1] + 1) % 10
    return dense


def test_random_inputs_are_stamped(bundle):
    report = json_report(main, [bundle, "--random", *QUICK])
    assert (report["data"], report["stamp"], report["images"]) == ("random", STAMP, 64)
    assert (report["accuracy"], report["dense_accuracy"]) == (None, None)
    assert STAMP in success(main, [bundle, "--random", *QUICK]).stdout.replace("\n", " ")


def test_without_data_inputs_are_random_and_stamped(bundle):
    report = json_report(main, [bundle, *QUICK])
    assert (report["data"], report["stamp"]) == ("random", STAMP)


def test_random_inputs_are_the_same_each_time(bundle):
    first, second = (json_report(main, [bundle, "--random", *QUICK])["option_counts"] for _ in range(2))
    assert first == second


def test_the_json_report_of_a_file_with_labels(bundle, images, labels, tmp_path):
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    result = success(main, [bundle, "--data", tmp_path / "data.npz", "--batch", "2", *QUICK, "--json"])
    assert "timing, percent: 100/100" in result.stderr
    report = json_report(main, [bundle, "--data", tmp_path / "data.npz", "--batch", "2", *QUICK])
    assert (report["batch"], report["images"], report["stamp"]) == (2, 6, None)
    assert report["data"] == str(tmp_path / "data.npz")
    assert report["dense_accuracy"] == pytest.approx(5 / 6)
    assert report["environment"]["threads"] == 1
    assert report["timings"][0]["name"] == "dense network, one graph"
    assert {timing["runs"] for timing in report["timings"]} == {1}
    assert all(timing["p90_ms"] is None for timing in report["timings"])


def test_the_penalty_reaches_the_agent(bundle, images, tmp_path):
    np.save(tmp_path / "data.npy", images)
    counts = {
        penalty: json_report(main, [bundle, "--data", tmp_path / "data.npy", *QUICK, "--penalty", penalty])
        for penalty in ("-100", "100")
    }
    assert counts["-100"]["option_counts"] == [[0, 0, 0, 6]] * 3
    assert counts["100"]["option_counts"] == [[6, 0, 0, 0]] * 3


def test_the_report_for_people(bundle, images, labels, tmp_path):
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    out = success(main, [bundle, "--data", tmp_path / "data.npz", *QUICK]).stdout
    for words in (
        "dense network, one graph", "static graph, option 1", "controller, its decisions given", "too few",
        "controller, option 4 held", "agent's share", "cheapest first: 0:", "dense network 83.33 %; 6 images",
    ):  # fmt: skip
        assert words in out
    assert STAMP not in out


def test_a_file_without_labels_has_no_accuracy(bundle, images, tmp_path):
    np.savez(tmp_path / "data.npz", images=images)
    assert json_report(main, [bundle, "--data", tmp_path / "data.npz", *QUICK])["accuracy"] is None
    assert "accuracy" not in success(main, [bundle, "--data", tmp_path / "data.npz", *QUICK]).stdout


def test_a_data_set_is_read_as_the_bundle_takes_it_and_only_where_needed(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("rnp_deploy.tools.bench._MOST_IMAGES", 4)
    monkeypatch.setattr("rnp_deploy.tools.bench._MOST_BATCHES", 1)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for i in range(24):
        path = tmp_path / ("train", "val")[i % 2] / "ab"[i // 12] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    for row, path in enumerate(sorted((tmp_path / "val").rglob("*.png"))):
        if row % 3:
            path.write_bytes(path.read_bytes()[:-500])  # an error if it were read
    report = json_report(main, [bundle, "--data", f"folder:{tmp_path}", *QUICK])
    assert (report["images"], report["data"], report["stamp"]) == (4, f"folder:{tmp_path}", None)
    assert report["accuracy"] is not None
    assert json_report(main, [bundle, "--data", "digits", *QUICK])["images"] == 4


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


GOOD = np.zeros((2, 3, 16, 16), np.float32)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("data.npy", None, "data.npy cannot be read"),
        ("data.npy", b"", "data.npy cannot be read"),
        ("data.npy", b"text", "data.npy cannot be read"),
        ("data.npy", npy(GOOD)[:-1], "data.npy cannot be read"),
        ("data.npy", npy(GOOD[0]), "(1, 16, 16)"),
        ("data.npy", npy(GOOD.astype(np.float64)), "float64"),
        ("data.npy", npy(GOOD[:0]), "0 images"),
        ("data.npy", npy(np.float32(1)), ""),
        ("data.npy", npy(np.full_like(GOOD, np.nan)), "NaN"),
        ("data.npz", b"", "data.npz cannot be read"),
        ("data.npz", b"PK\x03\x04 and no more", "data.npz cannot be read"),
        ("data.npz", npz(images=GOOD)[:-30], "data.npz cannot be read"),
        ("data.npz", npz(images=GOOD).replace(GOOD.tobytes(), b"\1" * GOOD.nbytes), "cannot be read"),
        ("data.npz", npz(pictures=GOOD), "images"),
        ("data.npz", npz(images=GOOD, labels=np.zeros(3, int)), "(3,) for 2 images"),
        ("data.npz", npz(images=GOOD, labels=np.zeros((2, 1), int)), "labels"),
        ("data.npz", npz(images=GOOD, labels=np.array(0)), "labels"),
    ],
    ids=[
        "missing", "empty", "text", "truncated", "one image", "float64", "no image", "a number", "NaN",
        "empty zip", "no zip", "zip truncated", "zip of other bytes", "other name", "too many labels",
        "labels in columns",
        "one label",
    ],
)  # fmt: skip
def test_bad_data(bundle, tmp_path, name, data, words):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    assert words in failure(main, [bundle, "--data", tmp_path / name, *QUICK, "--json"])


@pytest.mark.parametrize("name", ["data.npy", "data.npz"])
def test_pickled_data_is_not_executed(bundle, tmp_path, name):
    trap = np.array([Trap(tmp_path / "sprung")], object)
    for data in (pickle.dumps(trap), npy(trap, allow_pickle=True), npz(images=trap)):
        (tmp_path / name).write_bytes(data)
        assert f"{name} cannot be read" in failure(main, [bundle, "--data", tmp_path / name, *QUICK])
        assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch", "65"], "64 images do not fill a batch of 65"),
        (["--penalty", "nan"], "penalty is not finite"),
    ],
    ids=" ".join,
)
def test_bad_arguments(bundle, flags, words):
    assert words in failure(main, [bundle, "--random", *QUICK, *flags])


def test_a_missing_bundle(tmp_path):
    assert "nowhere does not exist" in failure(main, [tmp_path / "nowhere", "--random"])
    np.save(tmp_path / "data.npy", GOOD)
    assert "nowhere does not exist" in failure(main, [tmp_path / "nowhere", "--data", tmp_path / "data.npy"])
