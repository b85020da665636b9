"""ONNX Runtime's library and headers in one folder."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from commands import failure, success
from rnp_deploy.engines import ort_sdk
from rnp_deploy.engines.ort_sdk import installed_library, lay_out_sdk
from rnp_deploy.errors import InputError, MissingRuntimeError, OutputExistsError
from rnp_deploy.tools.onnxruntime_sdk import main


def headers(folder: Path, version: int = 21) -> Path:
    folder.mkdir(parents=True)
    (folder / "onnxruntime_cxx_api.h").write_text("// C++")
    (folder / "onnxruntime_c_api.h").write_text(f"#define ORT_API_VERSION {version}\n")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """An installed onnxruntime 1.32.0 with a provider, and nothing on the system."""
    folder = tmp_path / "site" / "onnxruntime"
    (folder / "capi").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    for name in ("libonnxruntime.so.1.32.0", "libonnxruntime_providers_cuda.so", "other.so"):
        (folder / "capi" / name).write_text(name)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.delitem(__import__("sys").modules, "onnxruntime", raising=False)

    @contextmanager
    def none(name, suite, sources):
        raise MissingRuntimeError(f"no {name} of {suite}")
        yield

    monkeypatch.setattr(ort_sdk, "unpacked_package", none)
    return folder / "capi"


def test_the_library_of_the_wheel_with_its_links_and_providers(wheel, tmp_path):
    assert lay_out_sdk(tmp_path / "sdk", include=headers(tmp_path / "headers"))
    lib = tmp_path / "sdk" / "lib"
    assert names(lib) == {
        "libonnxruntime.so", "libonnxruntime.so.1", "libonnxruntime.so.1.32.0", "libonnxruntime_providers_cuda.so",
    }  # fmt: skip
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        assert os.readlink(lib / name) == "libonnxruntime.so.1.32.0"
    assert (lib / "libonnxruntime.so").read_text() == "libonnxruntime.so.1.32.0"
    assert names(tmp_path / "sdk" / "include") == {"onnxruntime_cxx_api.h", "onnxruntime_c_api.h"}


def test_headers_of_the_system_come_before_those_of_a_package(wheel, tmp_path):
    include = headers(tmp_path / "usr")
    (include / "stdio.h").write_text("not ONNX Runtime's")
    lay_out_sdk(tmp_path / "sdk", system_includes=(tmp_path / "none", include))
    assert names(tmp_path / "sdk" / "include") == {"onnxruntime_cxx_api.h", "onnxruntime_c_api.h"}


def test_headers_of_debians_package(wheel, tmp_path, monkeypatch):
    asked = []

    @contextmanager
    def package(name, suite, sources):
        asked.append((name, suite, sources))
        headers(tmp_path / "unpacked" / "usr" / "include" / "onnxruntime")
        yield tmp_path / "unpacked"

    monkeypatch.setattr(ort_sdk, "unpacked_package", package)
    lay_out_sdk(tmp_path / "sdk", suite="new", sources=(tmp_path,))
    assert asked == [("libonnxruntime-dev", "new", (tmp_path,))]
    assert "onnxruntime_cxx_api.h" in names(tmp_path / "sdk" / "include")


def test_it_is_written_once_and_again_for_another_library(wheel, tmp_path):
    includes = (headers(tmp_path / "usr"),)
    target = tmp_path / "sdk"
    assert lay_out_sdk(target, system_includes=includes)
    assert not lay_out_sdk(target, system_includes=includes)
    (wheel / "libonnxruntime.so.1.32.0").rename(wheel / "libonnxruntime.so.1.33.1")
    assert lay_out_sdk(target, system_includes=includes)
    assert "libonnxruntime.so.1.33.1" in names(target / "lib")
    assert "libonnxruntime.so.1.32.0" not in names(target / "lib")


@pytest.mark.parametrize("version", [33, None])
def test_headers_that_are_newer_than_the_library_or_none_are_refused(wheel, tmp_path, version):
    include = headers(tmp_path / "headers", version or 1)
    if version is None:
        (include / "onnxruntime_c_api.h").write_text("")
    with pytest.raises(InputError, match=r"the headers are of .* library is 1\.32\.0; pass --include"):
        lay_out_sdk(tmp_path / "sdk", include=include)
    assert not (tmp_path / "sdk").exists()


def test_errors_say_where_else_headers_are(wheel, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no onnxruntime_cxx_api\.h; pass --include DIR"):
        lay_out_sdk(tmp_path / "sdk", include=tmp_path / "empty")
    with pytest.raises(MissingRuntimeError, match="no libonnxruntime-dev of trixie; pass --include DIR"):
        lay_out_sdk(tmp_path / "sdk", system_includes=())
    assert names(tmp_path) == {"site", "empty"}


def test_a_package_without_headers(wheel, tmp_path, monkeypatch):
    @contextmanager
    def package(name, suite, sources):
        yield tmp_path / "site"

    monkeypatch.setattr(ort_sdk, "unpacked_package", package)
    with pytest.raises(MissingRuntimeError, match=r"holds no onnxruntime_cxx_api\.h; pass --include"):
        lay_out_sdk(tmp_path / "sdk", system_includes=())


def test_what_is_not_ours_is_left_alone(wheel, tmp_path):
    (tmp_path / "sdk").mkdir()
    (tmp_path / "sdk" / "mine").write_text("")
    with pytest.raises(OutputExistsError, match="not ours to overwrite"):
        lay_out_sdk(tmp_path / "sdk", include=headers(tmp_path / "headers"))


def test_a_wheel_without_a_library(wheel):
    (wheel / "libonnxruntime.so.1.32.0").unlink()
    with pytest.raises(MissingRuntimeError, match="holds none; take an archive"):
        installed_library()


def test_no_wheel(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingRuntimeError, match="onnxruntime is not installed; pip install"):
        installed_library()


def test_the_command(wheel, tmp_path):
    include = headers(tmp_path / "headers")
    written = success(main, ["-o", tmp_path / "sdk", "--include", include])
    assert "written; cmake -DONNXRUNTIME_ROOT=" in written.stdout
    line = failure(main, ["-o", tmp_path / "sdk", "--include", tmp_path])
    assert "has no onnxruntime_cxx_api.h" in line
