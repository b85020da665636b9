"""rnp_check: what it says of packages, and its exit status."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from rnp_deploy.bundle import open_bundle
from rnp_deploy.canonical_json import canonical_sha256
from rnp_deploy.engines.ort_build import build_engine_set
from serving_build import built, environment

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def engines(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "engines"
    build_engine_set(open_bundle(exported("chain").path), folder)
    return folder


def checked(*arguments):
    done = subprocess.run(
        [str(built("asan") / "rnp_check"), *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment("asan"),
    )  # fmt: skip
    return done.returncode, done.stdout


def test_good_ones(exported, engines):
    bundle = exported("chain").path
    assert checked("--files", bundle, engines, "--device", "cpu") == (0, f"{bundle}: ok\n{engines}: ok\n")


def test_engines_are_hashed_where_it_is_asked_for(engines, tmp_path):
    damaged = shutil.copytree(engines, tmp_path / "damaged")
    engine = next(damaged.glob("stages/*/*.onnx"))
    engine.write_bytes(bytes([engine.read_bytes()[0] ^ 1]) + engine.read_bytes()[1:])
    assert checked(damaged) == (0, f"{damaged}: ok\n")
    code, said = checked("--files", damaged)
    assert code == 1
    assert said.startswith(f"{damaged}: file-hash\n")


def test_what_cannot_run_here_fails(engines, tmp_path):
    foreign = shutil.copytree(engines, tmp_path / "foreign")
    raw = json.loads((foreign / "engines.json").read_text())
    raw["fingerprint"]["onnxruntime"] = "1.20.0"
    raw["engines_sha256"] = canonical_sha256(raw, without="engines_sha256")
    (foreign / "engines.json").write_text(json.dumps(raw))
    code, said = checked(foreign)
    assert code == 1
    assert said.startswith(f"{foreign}: ok, but it cannot run here\n  error (mismatch): onnxruntime is ")
    code, said = checked("--json", foreign)
    assert (code, json.loads(said)["code"]) == (1, "ok")
    assert checked("--device", "cuda", engines)[0] == 1


def test_usage():
    assert checked("--help")[0] == 0
    for wrong in ([], ["--device", "tpu", "x"], ["--unknown", "x"]):
        assert checked(*wrong)[0] == 2
