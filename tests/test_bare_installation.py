"""A machine that only runs TensorRT engines, as a Jetson: nothing but what a plain installation brings."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rnp_deploy.bundle.engine_set import ENGINES_FILE, ENGINES_FORMAT, EngineSetManifest
from rnp_deploy.bundle.manifest import FileManifest
from rnp_deploy.bundle.reading import MANIFEST_FILE, open_bundle
from rnp_deploy.bundle.signed_json import signed_text
from rnp_deploy.engines.trt_plan import tensorrt_plan
from rnp_deploy.hashing import file_sha256

ABSENT = (
    "torch",
    "onnx",
    "onnxruntime",
    "onnx_ir",
    "onnxscript",
    "polygraphy",
    "sklearn",
    "PIL",
    "safetensors",
)
START = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT!r}))  # what is None there cannot be imported
bundle, engines = sys.argv[1:]
"""
PLAN = b"a plan of TensorRT"
TENSORRT = "10.3.0.26"


@pytest.fixture(scope="module")
def folders(exported, tmp_path_factory):
    """A bundle, an engine set whose plans are none, and a folder with a TensorRT of which nothing can be made."""
    bundle, folder = open_bundle(exported("chain").path), tmp_path_factory.mktemp("bare")
    engines, site = folder / "engines", folder / "site"
    engines.mkdir()
    site.mkdir()
    (site / "tensorrt.py").write_text(f"__version__ = {TENSORRT!r}\n")
    (engines / MANIFEST_FILE).write_bytes((bundle.path / MANIFEST_FILE).read_bytes())
    plan = tensorrt_plan(bundle.manifest)
    paths = sorted({piece.file for step in plan.steps for piece in step.pieces})
    for path in paths:
        (engines / path).parent.mkdir(parents=True, exist_ok=True)
        (engines / path).write_bytes(PLAN)
    described = EngineSetManifest(
        format_version="1.0",
        producer="tests",
        backend="tensorrt",
        bundle_sha256=file_sha256(bundle.path / MANIFEST_FILE),
        fingerprint={"flavor": "tensorrt", "tensorrt": TENSORRT, "machine": platform.machine()},
        plan=plan,
        files=tuple(
            FileManifest(path=path, bytes=len(PLAN), sha256=hashlib.sha256(PLAN).hexdigest())
            for path in paths
        ),
        max_batch=8,
    )
    (engines / ENGINES_FILE).write_text(signed_text(described, ENGINES_FORMAT))
    return bundle.path, engines, site


@pytest.fixture
def run_bare(folders):
    def run(script):
        bundle, engines, site = folders
        done = subprocess.run(
            [sys.executable, "-c", START + script, str(bundle), str(engines)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""},
        )
        assert done.returncode == 0, done.stderr
        return " ".join(done.stdout.split())

    return run


def test_a_plain_installation_asks_for_four_packages():
    wanted = [text for text in importlib.metadata.requires("rnp-deploy") or () if "extra ==" not in text]
    assert {re.split(r"[<>=!~\[; ]", text)[0] for text in wanted} == {"numpy", "click", "rich", "pydantic"}


def test_the_core_imports(run_bare):
    modules = [
        "rnp_deploy.batching", "rnp_deploy.governor", "rnp_deploy.latency_calibration", "rnp_deploy.preprocessing",
        "rnp_deploy.benchmarking.benchmark", "rnp_deploy.engines.backends", "rnp_deploy.engines.cuda_memory",
        "rnp_deploy.engines.trt", "rnp_deploy.tools.bench", "rnp_deploy.tools.build", "rnp_deploy.tools.run",
    ]  # fmt: skip
    said = run_bare(
        f"import {', '.join(modules)}\nfor name in rnp_deploy.__all__: getattr(rnp_deploy, name)\nprint('done')"
    )
    assert said == "done"


def test_a_bundle_can_be_inspected(run_bare):
    said = run_bare(
        "from rnp_deploy.tools.inspect import main\nmain([bundle, '--check'], standalone_mode=False)"
    )
    assert re.search(r"this bundle: \d+ branches", said)


def test_an_engine_set_can_be_inspected_and_says_what_keeps_it_from_loading(run_bare):
    said = run_bare(
        "from rnp_deploy.tools.inspect import main\nmain([engines, '--check'], standalone_mode=False)"
    )
    assert "backend tensorrt" in said
    assert re.search(r"DOES NOT FIT.*(NVIDIA driver|CUDA driver)", said)


@pytest.mark.parametrize("arguments", ["", ", backend='tensorrt', device='cuda'"])
def test_a_controller_comes_as_far_as_the_driver(arguments, run_bare):
    said = run_bare(f"""
from rnp_deploy import Controller
from rnp_deploy.errors import EngineError
try:
    Controller.load(engines{arguments})
except EngineError as err:
    print(err)
""")
    assert re.search(r"NVIDIA driver|CUDA driver", said)


def test_the_bundle_asks_for_a_runtime(run_bare):
    said = run_bare("""
from rnp_deploy import Controller
from rnp_deploy.errors import MissingRuntimeError
try:
    Controller.load(bundle)
except MissingRuntimeError as err:
    print(err)
""")
    assert "pip install 'rnp-deploy[cpu]'" in said


def test_the_jetson_script_says_what_it_would_run(folders, tmp_path):
    script = Path(__file__).parents[1] / "benchmarks" / "jetson.sh"
    work = tmp_path / "work"
    done = subprocess.run(
        ["bash", str(script), "--dry-run", str(folders[0]), str(work)],
        capture_output=True,
        text=True,
        env={**os.environ, "MAX_BATCH": "4", "BATCHES": "2", "POWER_MODE": "0"},
    )
    assert done.returncode == 0, done.stderr
    ran = [line.removeprefix("+ ") for line in done.stderr.splitlines() if line.startswith("+ ")]
    words = [
        "venv --system-site-packages",
        "pip install",
        "rnp-build",
        "rnp-inspect",
        "nvpmodel -m 0",
        "rm -f",
        "--store",
    ]
    words += ["jetson_clocks", "rnp-bench", "nvpmodel -q", "--restore"]
    assert len(ran) == len(words)
    assert all(word in line for word, line in zip(words, ran, strict=True)), ran
    assert "--max-batch 4" in ran[2]
    assert not work.exists()


def test_the_clocks_of_a_jetson_are_put_back_where_fixing_them_fails():
    script = Path(__file__).parents[1] / "benchmarks" / "jetson.sh"
    program = f"""set -e
clocks=stored
source <(sed -n '/^fix_clocks()/,/^}}/p' {script})
run() {{ echo "$*"; [ "$*" != "sudo jetson_clocks" ]; }}
fix_clocks
echo measured
"""
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    said = ["rm -f stored", "sudo jetson_clocks --store stored", "sudo jetson_clocks"]
    assert done.stdout.splitlines() == [*said, "sudo jetson_clocks --restore stored"], done.stderr
    assert done.returncode == 1


def test_the_jetson_script_refuses_another_machine(folders, tmp_path):
    if Path("/etc/nv_tegra_release").exists():
        pytest.skip("this is a Jetson")
    script = Path(__file__).parents[1] / "benchmarks" / "jetson.sh"
    command = ["bash", str(script), str(folders[0]), str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not say that this is a Jetson" in done.stderr
