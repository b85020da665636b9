"""What the wheel holds, and what importing the package loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "click",
    "onnx_ir",
    "onnxscript",
    "rich",
    "PIL",
    "sklearn",
    "matplotlib",
    "jinja2",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: setuptools would pack what an earlier build left in build/lib
    leave = shutil.ignore_patterns("build", ".*", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=leave)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(file).namelist())


def test_the_wheel_has_one_top_level_name(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rnp_deploy"}


def test_the_wheel_has_every_module_and_the_type_marker(wheel):
    sources = {
        f"rnp_deploy/{path.relative_to(ROOT / 'rnp_deploy').as_posix()}"
        for path in (ROOT / "rnp_deploy").rglob("*.py")
    }
    for folder in ("engines", "exporters", "tools"):
        sources |= {
            f"rnp_deploy/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*.py")
        }
    packed = {name for name in wheel if name.endswith(".py")}
    assert packed == sources
    assert {"rnp_deploy/py.typed", "rnp_deploy/benchmarking/report.html.j2"} <= wheel


def test_the_wheel_carries_the_licence(wheel):
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("rnp_deploy", set()),
        ("rnp_deploy.errors", set()),
        ("rnp_deploy.batching", set()),
        ("rnp_deploy.controller", set()),
        ("rnp_deploy.benchmarking.html_report", set()),
        ("rnp_deploy.benchmarking.thumbnails", set()),
        ("rnp_deploy.bundle", set()),
        ("rnp_deploy.governor", set()),
        ("rnp_deploy.latency_calibration", set()),
        ("rnp_deploy.datasets", set()),
        ("rnp_deploy.engines.ort", set()),
        ("rnp_deploy.tools.inspect", {"click", "rich"}),
        ("rnp_deploy.tools.build", {"click", "rich"}),
        ("rnp_deploy.tools.run", {"click", "rich"}),
        ("rnp_deploy.tools.bench", {"click", "rich"}),
        ("rnp_deploy.tools.bench_compare", {"click", "rich"}),
        ("rnp_deploy.benchmarking.load", set()),
        ("rnp_deploy.tools.export", {"click", "rich"}),
        ("rnp_deploy.tools.train", {"click", "rich"}),
        ("rnp_deploy.tools.triton", {"click", "rich"}),
        ("rnp_deploy.exporters.triton_repository", set()),
        ("rnp_deploy.network", {"torch"}),
    ],
)
def test_import_budget(module, allowed):
    script = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()
    # torch itself may load onnx-free helpers, but never an inference runtime.
    assert set(loaded) <= allowed


def test_running_a_bundle_imports_no_torch(exported):
    path = exported("chain").path
    script = (
        "import sys, numpy, rnp_deploy\n"
        f"with rnp_deploy.Controller.load({str(path)!r}) as controller:\n"
        "    controller.run(numpy.zeros((2, 3, 16, 16), numpy.float32))\n"
        "print(*(name for name in ('torch', 'onnx', 'click') if name in sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.split()
    assert loaded == []


def test_public_names_exist_and_are_sorted():
    import rnp_deploy

    assert sorted(rnp_deploy.__all__) == list(rnp_deploy.__all__)
    for name in rnp_deploy.__all__:
        assert getattr(rnp_deploy, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        rnp_deploy.nothing  # noqa: B018


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_versions_agree():
    import tomllib

    import rnp_deploy

    with (ROOT / "pyproject.toml").open("rb") as stream:
        assert tomllib.load(stream)["project"]["version"] == rnp_deploy.__version__
