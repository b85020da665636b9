"""rnp_bench_cpp: the controller and static graphs in turns, as text and as JSON."""

from __future__ import annotations

import json
import subprocess

import pytest

from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.static_graph import static_graph
from serving_build import built

#: The first test to need the C++ programs builds them.
pytestmark = pytest.mark.timeout(1500)


def bench(*arguments):
    program = built("plain") / "rnp_bench_cpp"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("threads", [1, 2])
def test_times_and_the_controllers_own_share(exported, engine_set, tmp_path, threads):
    case, engines = exported("chain"), engine_set("chain")
    bundle = open_bundle(case.path)
    statics = []
    for option in (1, 2):
        (tmp_path / f"{option}.onnx").write_bytes(
            static_graph(bundle, bundle.manifest.uniform_options(option))
        )
        statics += ["--static", tmp_path / f"{option}.onnx"]
    images = case.images(3).numpy()
    images.tofile(tmp_path / "images")
    arguments = ["--weights", case.path, "--images", tmp_path / "images", "--batch", 3, "--threads", threads]
    done = bench(engines, *statics, *arguments, "--penalty", 0.05, "--duration-s", 0.05, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    with Controller.load(engines, threads=1) as controller:
        result = controller.run(images, penalty=0.05)
    assert report["options"] == result.options[0].tolist()
    assert report["macs"] == result.macs[0]
    assert (report["batch"], report["threads"]) == (3, threads)
    assert list(report["times_ms"]) == ["controller", *map(str, statics[1::2])]
    for times in (*report["times_ms"].values(), report["overhead_us"]):
        assert times["count"] >= 5
        assert 0 < times["p10"] <= times["p50"] <= times["p90"] <= times["p99"]
    assert report["overhead_us"]["p50"] < 1e3 * report["times_ms"]["controller"]["p50"]


def test_text_on_random_images(exported):
    done = bench(exported("chain").path, "--duration-s", 0.02)
    assert done.returncode == 0, done.stderr
    assert "batch 1, threads 1, ONNX Runtime" in done.stdout
    assert "controller, beyond its pieces: p50 " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "a PACKAGE is needed"),
        (["none", "--nothing"], 2, "unknown argument --nothing"),
        (["none", "--batch"], 2, "--batch takes a value"),
        (["none", "--random"], 2, "unknown argument --random"),
        (["none", "--batch", "0"], 2, '--batch is "0"; pass an integer of 1 or more'),
        (["none", "--batch", "-1"], 2, '--batch is "-1"'),
        (["none", "--batch", "2x"], 2, '--batch is "2x"'),
        (["none", "--threads", "-1"], 2, '--threads is "-1"'),
        (["none", "--threads", "99999999999"], 2, '--threads is "99999999999"'),
        (["none"], 1, "none does not exist"),
    ],
)
def test_errors(arguments, code, words):
    done = bench(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_help():
    done = bench("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("rnp_bench_cpp PACKAGE [--static FILE.onnx]...")


@pytest.mark.parametrize(
    ("cut", "words"), [(0, "fewer images than a batch takes"), (1, "ends inside an image")]
)
def test_images_that_do_not_fit(exported, tmp_path, cut, words):
    case = exported("chain")
    content = case.images(2).numpy().tobytes()
    (tmp_path / "images").write_bytes(content[: len(content) - cut])
    done = bench(case.path, "--images", tmp_path / "images", "--batch", 3)
    assert done.returncode == 2
    assert words in done.stderr
