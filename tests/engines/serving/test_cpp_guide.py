"""The programs of docs/cpp.md compile against the installed library, and run."""

from __future__ import annotations

import re
import subprocess

import pytest

from served_network import export_served
from serving_build import SERVING, built, configured, environment, onnxruntime_root

#: The first test to need the C++ programs builds them.
pytestmark = pytest.mark.timeout(1500)

ROOT = SERVING.parents[1]
GUIDE = ROOT / "docs" / "cpp.md"
PROJECT = """cmake_minimum_required(VERSION 3.18)
project(guide LANGUAGES C CXX)
{found}
add_executable(in_cpp in_cpp.cpp)
add_executable(in_c in_c.c)
foreach(app in_cpp in_c)
  {linked}
endforeach()
set_target_properties(in_c PROPERTIES LINKER_LANGUAGE CXX C_STANDARD 99 C_STANDARD_REQUIRED ON)
target_compile_options(in_c PRIVATE -Wall -Wextra -Wpedantic -Werror)
"""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide")
    run("cmake", "--install", built("plain"), "--prefix", folder / "installed")
    (cpp,), (c,), (cmake,) = blocks("cpp"), blocks("c"), blocks("cmake")
    assert len(cpp.splitlines()) <= 28
    (folder / "in_cpp.cpp").write_text(cpp)
    (folder / "in_c.c").write_text(c)
    found, linked = cmake.splitlines()
    (folder / "CMakeLists.txt").write_text(
        PROJECT.format(found=found, linked=linked.replace("app", "${app}", 1))
    )
    done = configured(
        folder / "build",
        folder,
        f"-DCMAKE_PREFIX_PATH={folder / 'installed'}",
        f"-DONNXRUNTIME_ROOT={onnxruntime_root()}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run("cmake", "--build", folder / "build")
    return folder / "build"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    path = tmp_path_factory.mktemp("guided") / "bundle"
    export_served(path)
    return path


@pytest.mark.parametrize("name", ["in_cpp", "in_c"])
def test_the_guides_programs_run(programs, package, name):
    assert re.fullmatch(r"first output \S+, \d+ MACs\n", run(programs / name, package))
    done = subprocess.run(
        [programs / name, package / "none"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment("plain"),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("missing: ")


def test_the_guide_names_every_error_code():
    header = (ROOT / "engines/serving/include/rnp/error.hpp").read_text()
    table = GUIDE.read_text(encoding="utf-8")
    codes = re.findall(r'// "([a-z-]+)"', header)
    assert codes
    for code in codes:
        assert f"`{code}`" in table, code


def test_the_guide_names_every_option_of_the_server():
    source = (ROOT / "engines/serving/examples/rnp_serve_example.cpp").read_text()
    (listed,) = re.findall(r"arguments\(\s*argc, argv,\s*\{(.*?)\}", source, re.S)
    options = re.findall(r'"([a-z-]+)"', listed)
    assert options
    for option in options:
        assert f"`--{option}`" in GUIDE.read_text(encoding="utf-8"), option
