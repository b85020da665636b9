"""rnp-build, and what the other commands do with an engine set."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from bundles import edit_manifest
from commands import failure, json_report, success
from rnp_deploy import Controller
from rnp_deploy.bundle.engine_set import read_engines
from rnp_deploy.canonical_json import canonical_sha256
from rnp_deploy.engines import trt_fingerprint
from rnp_deploy.errors import BundleError, OutputExistsError
from rnp_deploy.exporters import export_bundle
from rnp_deploy.tools.bench import main as bench
from rnp_deploy.tools.build import main as build
from rnp_deploy.tools.inspect import main as inspect
from tensorrt_cases import GPU, export_four, needs_rtx

QUICK = ["--random", "--duration-s", "0", "--min-runs", "20", "--threads", "1"]


@pytest.fixture(scope="module")
def bundle(exported):
    return exported("chain").path


@pytest.fixture(scope="module")
def engines(bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "engines"
    success(build, [bundle, "-o", path])
    return path


def change_engines(path, change):
    """Change ``engines.json`` and sign it again."""
    raw = json.loads((path / "engines.json").read_text(encoding="utf-8"))
    change(raw)
    raw["engines_sha256"] = canonical_sha256(raw, without="engines_sha256")
    (path / "engines.json").write_text(json.dumps(raw), encoding="utf-8")


def test_the_report(bundle, tmp_path):
    result = success(build, [bundle, "-o", tmp_path / "engines", "--json"])
    assert "optimising branches: 37/37" in result.stderr
    report = json.loads(result.stdout)
    described = read_engines(tmp_path / "engines")
    assert report["engines"] == str(tmp_path / "engines")
    assert report["pieces"] == 37
    assert report["backend"] == "onnxruntime"
    assert report["fingerprint"] == described.fingerprint
    assert report["decisions"] == report["decisions_equal"] > 0
    assert 0 <= report["max_deviation"] < 1e-5
    files = [path for path in (tmp_path / "engines").rglob("*") if path.is_file()]
    names = {"engines.json", "manifest.json"}
    assert report["bytes"] == sum(file.stat().st_size for file in files if file.name not in names)


def test_the_report_for_people_and_without_comparison(bundle, tmp_path):
    assert "37 engines" in success(build, [bundle, "-o", tmp_path / "a"]).stdout
    text = success(build, [bundle, "-o", tmp_path / "b", "--verify", "0"]).stdout
    assert "not compared with the bundle" in text
    assert read_engines(tmp_path / "b").max_deviation is None


def test_what_cannot_be_built(bundle, engines, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    for arguments, words in [
        ([tmp_path / "nowhere", "-o", tmp_path / "x"], "nowhere does not exist"),
        ([engines, "-o", tmp_path / "x"], "is an engine set; pass the bundle"),
        ([bundle, "-o", engines], "pass --overwrite"),
        ([bundle, "-o", tmp_path / "mine", "--overwrite"], "holds no engines.json"),
        ([bundle, "-o", tmp_path / "no" / "parent"], "does not exist; create it first"),
    ]:
        assert words in failure(build, arguments)
    assert not (tmp_path / "x").exists()
    success(build, [bundle, "-o", tmp_path / "twice", "--verify", "0"])
    success(build, [bundle, "-o", tmp_path / "twice", "--verify", "0", "--overwrite"])


def test_inspecting_an_engine_set(engines):
    report = json_report(inspect, [engines, "--check"])
    assert (report["engines"], report["fits_here"], report["why"], report["checked"]) == (
        37,
        True,
        None,
        True,
    )
    text = success(inspect, [engines]).stdout
    assert "fits this machine" in text
    assert "hashes not checked" in text


def test_inspecting_the_engine_set_of_another_machine(bundle, tmp_path):
    path = tmp_path / "engines"
    success(build, [bundle, "-o", path, "--verify", "0"])
    change_engines(path, lambda raw: raw["fingerprint"].update(onnxruntime="1.0.0"))
    report = json_report(inspect, [path])
    assert report["fits_here"] is False
    assert "1.0.0" in report["why"]
    assert "DOES NOT FIT" in success(inspect, [path]).stdout
    assert "1.0.0" in failure(bench, [path, *QUICK])


@pytest.mark.parametrize("file", ["weights.bin", "stages/01/full-out1.onnx"])
def test_checking_finds_a_changed_byte(bundle, tmp_path, file):
    path = tmp_path / "engines"
    success(build, [bundle, "-o", path, "--verify", "0"])
    data = bytearray((path / file).read_bytes())
    data[-1] ^= 1
    (path / file).write_bytes(data)
    assert file in failure(inspect, [path, "--check"])


def test_timing_an_engine_set_with_and_without_its_rivals(engines, bundle, exported, tmp_path):
    alone = json_report(bench, [engines, "--random", *QUICK])
    assert [one["name"] for one in alone["contenders"]][:2] == [
        "controller",
        "controller, its decisions given",
    ]
    held = next(one for one in alone["contenders"] if one["name"] == "controller, option 4 held")
    assert held["speedup"] == 1.0
    beside = json_report(bench, [engines, "--random", "--bundle", bundle, *QUICK])
    assert beside["contenders"][0]["name"] == "dense network, one graph"
    assert "not the bundle" in failure(
        bench, [engines, "--random", "--bundle", exported("separable").path, *QUICK]
    )


def test_calibrating_writes_a_curve_that_targets_take(bundle, tmp_path):
    path = tmp_path / "engines"
    success(build, [bundle, "-o", path, "--verify", "0"])
    curve = json_report(bench, [path, "--random", "--calibrate", *QUICK])
    assert (curve["batch"], curve["threads"], curve["data"]) == (1, 1, "random")
    assert "p95 ms" in success(bench, [path, "--random", "--calibrate", "--batch", "2", *QUICK]).stdout
    success(bench, [path, "--random", "--calibrate", *QUICK])
    images = np.zeros((2, 3, 16, 16), np.float32)
    with Controller.load(path, threads=1) as controller:
        assert [curve.batch for curve in controller.latency_curves] == [2, 1]
        slack = controller.run(images, target_latency_ms=1e6)
        lowest = controller.latency_curves[0].points[0].penalty
        assert slack.options.tolist() == controller.run(images, penalty=lowest).options.tolist()
        for arguments, words in [
            ({"target_latency_ms": 1e-6}, "the fastest measured point"),
            ({"target_latency_ms": 1.0, "penalty": 0.1}, "pass one of them"),
            ({"target_latency_ms": 1.0, "target_macs": 0.5}, "pass one of them"),
        ]:
            with pytest.raises(ValueError, match=words):
                controller.run(images, **arguments)
        with pytest.raises(
            ValueError, match=r"batches of 3 with .* measured are 1, 2: rnp-bench ENGINES --calibrate"
        ):
            controller.run(np.zeros((3, 3, 16, 16), np.float32), target_latency_ms=1.0)


def test_a_bundle_cannot_be_calibrated(bundle):
    assert "rnp-build makes one" in failure(bench, [bundle, "--calibrate", *QUICK])


def test_a_curve_holds_for_its_threads_alone(bundle, tmp_path):
    path = tmp_path / "engines"
    success(build, [bundle, "-o", path, "--verify", "0"])
    success(bench, [path, "--random", "--calibrate", *QUICK])
    with Controller.load(path) as controller, pytest.raises(ValueError, match="none was measured"):
        controller.run(np.zeros((1, 3, 16, 16), np.float32), target_latency_ms=1e6)


def test_a_bundle_is_not_exported_over_an_engine_set(exported, bundle, tmp_path):
    success(build, [bundle, "-o", tmp_path / "engines", "--verify", "0"])
    with pytest.raises(OutputExistsError, match="is an engine set"):
        export_bundle(exported("chain").network, tmp_path / "engines", overwrite=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan["steps"].pop(0), "needs options before they are chosen"),
        (lambda plan: plan["steps"][1]["inputs"].update(x="outputs"), "before it is made"),
        (lambda plan: plan["steps"].pop(), "leaves a decision or the output unmade"),
        (lambda plan: plan["steps"][1]["pieces"].pop(), "one piece for each choice"),
        (lambda plan: plan["steps"][2].update(decides=0), "decision 0, which is none or taken already"),
        (lambda plan: plan["tensors"].pop(0), "agent/penalty"),
        (lambda plan: plan["tensors"][-1].update(follows=9), "'outputs' is not of shape"),
    ],
    ids=["first step", "input", "last step", "piece", "decision", "tensor", "follows"],
)
def test_a_plan_that_cannot_be_run_is_refused(bundle, tmp_path, change, words):
    path = tmp_path / "engines"
    success(build, [bundle, "-o", path, "--verify", "0"])
    change_engines(path, lambda raw: change(raw["plan"]))
    with pytest.raises(BundleError, match=words):
        Controller.load(path)


def test_a_changed_curve_is_left_out_until_it_is_measured_again(bundle, tmp_path, caplog):
    path = tmp_path / "engines"
    success(build, [bundle, "-o", path, "--verify", "0"])
    success(bench, [path, "--random", "--calibrate", *QUICK])
    text = (path / "latency.json").read_text(encoding="utf-8")
    (path / "latency.json").write_text(text.replace('"runs": 2', '"runs": 3'), encoding="utf-8")
    with Controller.load(path, threads=1) as controller:
        assert controller.latency_curves == ()
    assert "latency.json" in caplog.text
    success(bench, [path, "--random", "--calibrate", *QUICK])
    with Controller.load(path, threads=1) as controller:
        assert len(controller.latency_curves) == 1


def test_an_engine_set_runs_without_its_bundle_torch_or_onnx(bundle, tmp_path):
    success(build, [bundle, "-o", tmp_path / "engines", "--verify", "0"])
    script = (
        "import sys, numpy, rnp_deploy\n"
        f"with rnp_deploy.Controller.load({str(tmp_path / 'engines')!r}) as controller:\n"
        "    controller.run(numpy.zeros((2, 3, 16, 16), numpy.float32))\n"
        "print(*(name for name in ('torch', 'onnx', 'click') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_another_bundles_manifest_is_refused(bundle, tmp_path):
    success(build, [bundle, "-o", tmp_path / "engines", "--verify", "0"])
    edit_manifest(tmp_path / "engines", lambda raw: raw.update(classes=[str(i) for i in range(10)]))
    assert "of another bundle" in failure(bench, [tmp_path / "engines", *QUICK])


@needs_rtx
def test_an_engine_set_of_tensorrt_rtx(tmp_path):
    bundle, path = export_four(tmp_path / "bundle"), tmp_path / "engines"
    tensorrt = [
        bundle,
        "-o",
        path,
        "--backend",
        "tensorrt",
        "--flavor",
        "rtx",
        "--cache-dir",
        tmp_path / "cache",
    ]
    planned = json_report(build, [*tensorrt, "--dry-run"])
    assert (planned["pieces"], planned["engines"], planned["cached"], planned["dry_run"]) == (4, 4, 0, True)
    assert (
        "4 pieces, 4 different engines, 0 of them in the cache"
        in success(build, [*tensorrt, "--dry-run"]).stdout
    )
    assert not path.exists()
    options = [
        "--max-batch",
        "16",
        "--opt-batch",
        "2",
        "--compute-capability",
        "8.6, 12.0",
        "--workspace",
        "64",
    ]
    report = json_report(build, [*tensorrt, *options, "--workers", "2", "--memory", "2048"])
    assert (report["backend"], report["pieces"], report["max_deviation"]) == ("tensorrt", 4, None)
    assert report["fingerprint"]["compute_capability"] == "8.6 12.0"
    written = read_engines(path)
    assert written.max_batch == 16
    assert written.build_options["workspace_bytes"] == str(64 * 2**20)
    assert (
        "not compared with the bundle: no GPU here that it runs on"
        in success(build, [*tensorrt, *options, "--overwrite"]).stdout
    )


@needs_rtx
def test_inspecting_a_set_of_tensorrt(tmp_path, monkeypatch):
    path = tmp_path / "engines"
    bundle = export_four(tmp_path / "bundle")
    success(build, [bundle, "-o", path, "--backend", "tensorrt", "--flavor", "rtx", "--cache-dir", ""])
    monkeypatch.setattr(trt_fingerprint, "cuda_device", lambda: GPU)
    change_engines(path, lambda raw: raw["fingerprint"].update(tensorrt="1.0"))
    report = json_report(inspect, [path, "--check"])
    assert (report["fits_here"], len(report["engine_files"]), report["checked"]) == (False, 4, True)
    assert [entry["loads_here"] for entry in report["engine_files"]] == [False] * 4
    text = success(inspect, [path]).stdout
    assert text.count("install that version") == text.count("built for compute capability") == 1
    file = path / report["engine_files"][2]["file"]
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 8
    file.write_bytes(data)
    assert file.name in failure(inspect, [path, "--check"])
    assert json_report(inspect, [path])["checked"] is False


def test_options_of_another_backend_are_wrong_usage(bundle, tmp_path):
    for option in (["--max-batch", "2"], ["--dry-run"], ["--cache-dir", ""], ["--no-external-tactics"]):
        result = CliRunner().invoke(build, [str(bundle), "-o", str(tmp_path / "x"), *option])
        assert result.exit_code == 2
        assert f"{option[0]} is for --backend tensorrt" in result.stderr
