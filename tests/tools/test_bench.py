"""rnp-bench: its reports and refusals; never the times."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from commands import failure, json_report, success
from rnp_deploy import Controller
from rnp_deploy.benchmarking.report import BenchReport
from rnp_deploy.benchmarking.settings import BenchSettings
from rnp_deploy.errors import InputError
from rnp_deploy.tools import bench
from rnp_deploy.tools.bench import main

QUICK = ["--duration-s", "0", "--min-runs", "2", "--threads", "1"]
STAMP = "random inputs: the decisions mean nothing"


@pytest.fixture
def bundle(exported):
    return exported("chain").path


@pytest.fixture
def images(exported):
    return exported("chain").images(6).numpy()


@pytest.fixture
def labelled(bundle, images, tmp_path):
    """A file of images with what the dense network says, but for the last."""
    with Controller.load(bundle) as controller:
        dense = controller.run(images, options=np.full((6, 3), 4)).outputs.argmax(axis=1)
    dense[-1] = (dense[-1] + 1) % 10
    np.savez(tmp_path / "data.npz", images=images, labels=dense)
    return tmp_path / "data.npz"


def test_random_inputs_are_stamped_everywhere(bundle, tmp_path):
    files = ["--csv", tmp_path / "a.csv", "--html", tmp_path / "a.html"]
    shown = success(main, [bundle, "--random", *QUICK, *files]).stdout
    assert STAMP in shown.replace("\n", " ")
    assert STAMP in (tmp_path / "a.csv").read_text()
    assert (tmp_path / "a.html").read_text().count(STAMP) > 5
    report = json_report(main, [bundle, "--random", *QUICK])
    assert report["data"]["stamp"] == STAMP
    assert report["data"]["images"] == 64
    assert {contender["accuracy"] for contender in report["contenders"]} == {None}


def test_random_inputs_are_those_of_the_seed(bundle):
    hashes = [
        json_report(main, [bundle, "--random", *QUICK, "--seed", seed])["data"]["sha256"]
        for seed in (0, 0, 1)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_json_report_of_a_file_with_labels(bundle, labelled):
    result = success(main, [bundle, "--data", labelled, "--batch", 2, *QUICK, "--json"])
    assert "timing, percent: 100/100" in result.stderr
    report = BenchReport.model_validate_json(result.stdout)
    assert (report.settings.batch, report.data.images, report.data.stamp) == (2, 6, None)
    assert report.data.name == str(labelled)
    assert report.contenders[0].accuracy == pytest.approx(5 / 6)
    assert report.settings.threads == 1
    assert {contender.latency.runs for contender in report.contenders} == {2}
    assert all(contender.latency.p90 is None for contender in report.contenders)
    assert report.records == ()


def test_the_report_for_people(bundle, labelled):
    shown = success(main, [bundle, "--data", labelled, *QUICK]).stdout
    for words in (
        "dense network, one graph", "static graph, option 1", "controller, its decisions given", "too few",
        "controller, option 4 held", "83.3", "regrouping", "entropy",
    ):  # fmt: skip
        assert words in shown, words
    assert STAMP not in shown


def test_settings_reach_the_benchmark(bundle, labelled):
    report = json_report(
        main,
        [bundle, "--data", labelled, *QUICK, "--batches", "1,2", "--balance", "--records", "--penalty", "100",
         "--scenario", "server", "--qps", "1000", "--duration-s", "0.02", "--most-batch", "2", "--images", 4],
    )  # fmt: skip
    assert report["decisions"]["counts"] == [[6, 0, 0, 0]] * 3
    assert {point["batch"] for point in report["batches"]["points"]} == {1, 2}
    assert report["balance"]["points"]
    assert report["load"]["runs"][0]["offered_qps"] == 1000
    assert report["load"]["most_batch"] == 2
    assert any(record["scheduled_ms"] is not None for record in report["records"])


def test_a_row_per_contender_and_a_page(bundle, labelled, tmp_path):
    files = ["--csv", tmp_path / "a.csv", "--html", tmp_path / "a.html"]
    report = json_report(main, [bundle, "--data", labelled, *QUICK, *files])
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [row["name"] for row in rows] == [contender["name"] for contender in report["contenders"]]
    page = (tmp_path / "a.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "<svg" in page


def test_a_folder_of_images_is_read_as_the_bundle_takes_it(bundle, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for i in range(24):
        path = tmp_path / ("train", "val")[i % 2] / "ab"[i // 12] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    for row, path in enumerate(sorted((tmp_path / "val").rglob("*.png"))):
        if row % 3:
            path.write_bytes(path.read_bytes()[:-500])  # an error if it were read
    report = json_report(main, [bundle, "--data", f"folder:{tmp_path}", *QUICK, "--images", 4])
    assert (report["data"]["images"], report["data"]["name"]) == (4, f"folder:{tmp_path}")
    assert report["contenders"][0]["accuracy"] is not None
    assert json_report(main, [bundle, "--data", "digits", *QUICK, "--images", 5])["data"]["images"] == 5


def test_compare_is_a_command_of_its_own(bundle, labelled, tmp_path):
    for name in "ab":
        report = json_report(main, [bundle, "--data", labelled, *QUICK])
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    compared = ["compare", tmp_path / "a.json", tmp_path / "b.json", "--tolerance", "1000"]
    assert "controller" in success(main, compared).stdout
    assert "compare" in success(main, ["--help"]).stdout
    assert "--tolerance" in success(main, ["compare", "--help"]).stdout
    assert "nowhere.json" in failure(main, ["compare", tmp_path / "a.json", tmp_path / "nowhere.json"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "pass --data"),
        (["--data", "digits", "--random"], "either --data or --random"),
        (["--random", "--batches", "1,two"], "parted by commas"),
        (["--random", "--batches", "0"], "1 image or more"),
        (["--random", "--min-runs", "1"], "min-runs"),
        (["--random", "--csv", "a", "--html", "./a"], "--csv and --html are both a"),
        (
            ["--random", "--calibrate", "--csv", "a"],
            "--calibrate writes a latency curve, and no report: leave --csv",
        ),
        (["--random", "--calibrate", "--html", "a"], "leave --html out"),
        (["--random", "--calibrate", "--penalty", "1"], "leave --penalty out"),
        (["--random", "--calibrate", "--balance"], "leave --balance out"),
        (["--random", "--csv", "/"], "is a directory"),
        (["--random", "--scenario", "rush hour"], "scenario"),
        (["--random", "--scenario", "server"], "needs --qps, or --slo-ms"),
    ],
    ids=str,
)
def test_wrong_usage(bundle, flags, words):
    result = CliRunner().invoke(main, [str(bundle), *flags])
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "nowhere.npy"], "nowhere.npy cannot be read"),
        (["--data", "nowhere"], "there are no images at 'nowhere'"),
        (["--data", "{images}", "--accuracy"], "has no labels"),
        (["--data", "{images}", "--batch", "7"], "6 images do not fill a batch of 7"),
        (["--random", "--penalty", "nan"], "penalty is not finite"),
        (["--random", "--html", "{images}/no/a.html"], "does not exist"),
        (["--random", "--csv", "{images}/no/a.csv"], "does not exist"),
        (["--random", "--baseline", "nowhere.onnx"], "nowhere.onnx"),
        (["--random", "--calibrate"], "is no engine set"),
        (["--random", "--bundle", "nowhere"], "nowhere does not exist"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said_in_one_line(bundle, images, tmp_path, flags, words):
    np.save(tmp_path / "six.npy", images)
    flags = [flag.format(images=tmp_path / "six.npy") for flag in flags]
    assert words in failure(main, [bundle, *QUICK, *flags])


def test_data_of_another_shape(bundle, tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((3, 16, 16), np.float32))
    assert "(1, 16, 16)" in failure(main, [bundle, "--data", tmp_path / "one.npy", *QUICK, "--json"])


def test_a_missing_bundle(tmp_path):
    assert "nowhere does not exist" in failure(main, [tmp_path / "nowhere", "--random"])


def test_nothing_is_written_where_measuring_fails(bundle, tmp_path):
    failure(main, [bundle, "--random", *QUICK, "--penalty", "nan", "--html", tmp_path / "a.html"])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def unmeasured(monkeypatch):
    """What the benchmark would be called with, of which there is no report."""
    calls = []

    def called(path, inputs, settings, **how):
        calls.append((inputs, settings, how))
        raise InputError("not measured")

    monkeypatch.setattr(bench, "benchmark", called)
    return calls


@pytest.mark.parametrize("module", ["jinja2", "matplotlib"])
def test_what_a_page_needs_is_missed_before_it_is_measured(bundle, tmp_path, unmeasured, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    words = failure(main, [bundle, "--random", "--html", tmp_path / "a.html"])
    assert "rnp-deploy[bench]" in words and unmeasured == []


def test_every_option_reaches_the_settings(bundle, unmeasured, monkeypatch):
    flags = [
        "--batches",
        "1,100",
        "--backend",
        "torch",
        "--device",
        "cpu",
        "--bundle",
        "b",
        "--baseline",
        "a.onnx",
    ]
    flags += [
        "--baseline",
        "my b.onnx",
        "--scenario",
        "offline",
        "--qps",
        3,
        "--slo-ms",
        4,
        "--most-batch",
        5,
    ]
    flags += [
        "--duration-s",
        6,
        "--min-runs",
        7,
        "--seed",
        8,
        "--penalty",
        9,
        "--records",
        "--balance",
        "--threads",
        2,
    ]
    monkeypatch.setattr(sys, "argv", ["x", "--baseline", "my b.onnx"])
    failure(main, [bundle, "--random", *flags])
    ((inputs, settings, how),) = unmeasured
    assert settings == BenchSettings(
        backend="torch", device="cpu", threads=2, penalty=9, bundle=Path("b"), batches=(1, 100), scenario="offline",
        baselines=(Path("a.onnx"), Path("my b.onnx")), qps=3, slo_ms=4, most_batch=5, duration_s=6, min_runs=7, seed=8,
        records=True, balance=True,
    )  # fmt: skip
    assert len(inputs.images) == 100, "enough for every size"
    assert how["command"] == "rnp-bench --baseline 'my b.onnx'"


def test_calibrate_writes_the_curve_into_the_engine_set(engine_set, tmp_path):
    import shutil

    shutil.copytree(engine_set("chain"), tmp_path / "engines")
    report = json_report(main, [tmp_path / "engines", "--random", *QUICK, "--min-runs", 20, "--calibrate"])
    assert (report["batch"], report["threads"], report["data"]) == (1, 1, "random")
    with Controller.load(tmp_path / "engines", threads=1) as controller:
        assert controller.latency_curves[0].runs == report["runs"] >= 20
    shown = success(main, [tmp_path / "engines", "--random", *QUICK, "--min-runs", 20, "--calibrate"]).stdout
    assert "p95 ms" in shown
    assert STAMP in " ".join(shown.split())
