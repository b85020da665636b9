"""The C++ library builds, passes its own tests under sanitizers, and is found by other projects."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rnp_deploy.bundle import open_bundle
from serving_build import SERVING, built, configured, environment, onnxruntime_root, require_tools

#: The first test to need the C++ programs builds them.
pytestmark = pytest.mark.timeout(1500)

#: Quick to compile; what is tested here is how parts fit together.
UNOPTIMISED = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0")
CONSUMER = """\
cmake_minimum_required(VERSION 3.18)
project(consumer LANGUAGES C CXX)
{find}
add_executable(from_cpp from_cpp.cpp)
target_link_libraries(from_cpp rnp::rnp)
add_executable(from_c from_c.c)
target_link_libraries(from_c rnp::rnp)
"""
FROM_CPP = """\
#include <rnp/rnp.hpp>
#include <cstdio>
int main(int, char** arguments) {
  try {
    const rnp::Package package = rnp::Package::open(arguments[1]);
    rnp::ControllerOptions options;
    options.threads = 1;
    rnp::Controller controller(package, options);
    std::printf("%zu decisions by %s\\n", package.manifest().decisions.size(), controller.backend().c_str());
  } catch (const rnp::Error& error) {
    std::printf("%s\\n", std::string(rnp::name_of(error.code())).c_str());
  }
}
"""
FROM_C = """\
#include <rnp/rnp.h>
#include <stdio.h>
int main(int count, char** arguments) {
  rnp_package* package = NULL;
  rnp_network_info info = {.struct_size = sizeof info};
  const rnp_status status = rnp_package_open(arguments[count - 1], &package);
  if (status == 0 && rnp_package_info(package, &info) == 0) printf("%zu decisions\\n", info.decisions);
  else printf("%s\\n", rnp_status_name(status));
  rnp_package_free(package);
  return 0;
}
"""


def run(*command: object, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, **settings
    )


def succeeds(*command: object, **settings: object) -> str:
    done = run(*command, **settings)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-10_000:]
    return done.stdout


@pytest.mark.parametrize("kind", ["asan", "tsan"])
def test_unit_tests_pass_under_sanitizers(kind):
    folder = built(kind)
    succeeds("ctest", "--output-on-failure", "--timeout", 240, cwd=folder, env=environment(kind))


def test_sanitizers_are_heard(tmp_path):
    """A finding ends a program with 99: else nothing is told by those that pass."""
    require_tools()
    (tmp_path / "bad.cpp").write_text("int main(int n, char**) { int v[2] = {}; return v[n + 1]; }\n")
    compiler = os.environ.get("CXX", "c++")
    succeeds(compiler, "-fsanitize=address", "bad.cpp", "-o", "bad", cwd=tmp_path)
    assert run(tmp_path / "bad", env=environment("asan")).returncode == 99


def written_consumer(folder: Path, find: str) -> Path:
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text(CONSUMER.format(find=find))
    (folder / "from_cpp.cpp").write_text(FROM_CPP)
    (folder / "from_c.c").write_text(FROM_C)
    return folder


def check_consumer(source: Path, folder: Path, bundle: Path, *arguments: str) -> None:
    done = configured(folder, source, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    succeeds("cmake", "--build", folder, "--parallel", 2)
    decisions = len(open_bundle(bundle).manifest.decisions)
    assert succeeds(folder / "from_cpp", bundle) == f"{decisions} decisions by onnxruntime\n"
    assert succeeds(folder / "from_c", bundle) == f"{decisions} decisions\n"
    assert succeeds(folder / "from_cpp", bundle / "none") == "missing\n"
    assert succeeds(folder / "from_c", bundle / "none") == "missing\n"


def test_a_static_library_is_found_where_it_is_installed(exported, tmp_path):
    succeeds("cmake", "--install", built("plain"), "--prefix", tmp_path / "prefix")
    source = written_consumer(tmp_path / "source", "find_package(rnp_deploy 0.1 CONFIG REQUIRED)")
    prefix = f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}"
    check_consumer(source, tmp_path / "build", exported("chain").path, prefix)
    wanted = written_consumer(tmp_path / "newer", "find_package(rnp_deploy 0.2 CONFIG REQUIRED)")
    assert configured(tmp_path / "none", wanted, prefix).returncode != 0


@pytest.mark.slow
def test_a_shared_library_is_found_where_it_is_installed(exported, tmp_path):
    """Built as part of another project, as a shared library; then installed from there."""
    require_tools()
    bundle, root = exported("chain").path, f"-DONNXRUNTIME_ROOT={onnxruntime_root()}"
    parts = written_consumer(tmp_path / "parts", f"add_subdirectory({SERVING} rnp)")
    check_consumer(parts, tmp_path / "whole", bundle, root, "-DBUILD_SHARED_LIBS=ON", *UNOPTIMISED)
    assert not (tmp_path / "whole" / "rnp" / "rnp_bench_cpp").exists()  # examples are for who builds us alone
    succeeds("cmake", "--install", tmp_path / "whole", "--prefix", tmp_path / "prefix")
    assert list((tmp_path / "prefix").rglob("librnp.so.0*"))
    source = written_consumer(tmp_path / "source", "find_package(rnp_deploy CONFIG REQUIRED)")
    check_consumer(source, tmp_path / "build", bundle, f"-DCMAKE_PREFIX_PATH={tmp_path / 'prefix'}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["-DONNXRuntime_INCLUDE_DIR="],
            (
                "rnp_deploy needs ONNX Runtime 1.21 or newer, its library and its headers: pass -DONNXRUNTIME_ROOT=DIR, a "
                "folder with include/ and lib/, such as an unpacked release of ONNX Runtime, or what `python -m "
                "rnp_deploy.tools.onnxruntime_sdk -o DIR` lays out; or build without it by -DRNP_ONNXRUNTIME=OFF"
            ),
        ),
        (["-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON"], "apt install nlohmann-json3-dev"),
        (["-DCMAKE_DISABLE_FIND_PACKAGE_OpenSSL=ON"], "apt install libssl-dev"),
    ],
)
def test_what_is_missing_is_named(arguments, words, tmp_path):
    require_tools()
    done = configured(tmp_path, SERVING, *arguments)
    assert done.returncode != 0
    assert words in " ".join(done.stderr.split())


@pytest.mark.slow
def test_without_onnx_runtime_bundles_are_read_and_not_run(exported, tmp_path):
    require_tools()
    source = written_consumer(tmp_path / "source", f"add_subdirectory({SERVING} rnp)")
    done = configured(tmp_path / "build", source, "-DRNP_ONNXRUNTIME=OFF", "-DRNP_WERROR=ON", *UNOPTIMISED)
    assert done.returncode == 0, done.stdout + done.stderr
    succeeds("cmake", "--build", tmp_path / "build", "--parallel", 2)
    bundle = exported("chain").path
    assert succeeds(tmp_path / "build" / "from_c", bundle).endswith(" decisions\n")
    assert succeeds(tmp_path / "build" / "from_cpp", bundle) == "runtime\n"
