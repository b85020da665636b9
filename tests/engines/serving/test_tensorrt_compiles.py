"""The C++ TensorRT backend: what it compiles against, and what the configuration says where something is missing."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
from pathlib import Path

import pytest

#: The first test to need the C++ programs builds them.
pytestmark = pytest.mark.timeout(1500)

ROOT = Path(__file__).parents[3]
SERVING = ROOT / "engines" / "serving"
STAND_IN = Path(__file__).parent / "fake_tensorrt"
CMAKE = shutil.which("cmake")
COMPILER = next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)

needs_cmake = pytest.mark.skipif(CMAKE is None, reason="cmake is not installed; apt install cmake")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed; apt install g++")


def compiled(*arguments, source=None):
    command = [str(COMPILER), "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    command += [f"-I{SERVING / 'include'}", f"-I{SERVING / 'src'}", *arguments]
    given = {} if source is None else {"input": source}
    command += [str(SERVING / "src" / "trt_backend.cpp")] if source is None else ["-x", "c++", "-"]
    return subprocess.run(command, capture_output=True, text=True, check=False, **given)


def header_folders():
    """What a compiler has to be told, to find TensorRT's headers and CUDA's; none of them need exist."""
    roots = [os.environ.get(name) for name in ("TENSORRT_ROOT", "CUDAToolkit_ROOT", "CUDA_HOME")]
    folders = [Path(root) / "include" for root in [*roots, "/usr/local/cuda"] if root]
    # NVIDIA's wheels have CUDA's headers, cu13 all in one folder.
    folders += [found for place in site.getsitepackages() for found in Path(place).glob("nvidia/cu*/include")]
    return [f"-isystem{folder}" for folder in folders if folder.is_dir()]


@needs_compiler
def test_it_compiles_against_the_headers_at_hand():
    folders = header_folders()
    found = compiled(*folders, source="#include <NvInfer.h>\n")
    if found.returncode != 0:
        missing = found.stderr.partition("fatal error: ")[2].partition("\n")[0]
        pytest.skip(
            f"{missing or 'TensorRT headers cannot be read'}; set TENSORRT_ROOT, and CUDA_HOME for CUDA's headers"
        )
    done = compiled(*folders)
    assert done.returncode == 0, done.stderr


@needs_compiler
@pytest.mark.parametrize(
    ("version", "words"),
    [
        (["-DNV_TENSORRT_MAJOR=10", "-DNV_TENSORRT_MINOR=3"], None),
        (["-DNV_TENSORRT_MAJOR=11", "-DNV_TENSORRT_MINOR=0"], None),
        (["-DNV_TENSORRT_MAJOR=1", "-DNV_TENSORRT_MINOR=1", "-DTRT_MAJOR_RTX=1"], None),
        (["-DNV_TENSORRT_MAJOR=10", "-DNV_TENSORRT_MINOR=2"], "TensorRT 10.3 or newer is needed"),
        (["-DNV_TENSORRT_MAJOR=8", "-DNV_TENSORRT_MINOR=6"], "TensorRT 10.3 or newer is needed"),
    ],
)
def test_versions_that_it_takes(version, words):
    done = compiled(f"-isystem{STAND_IN}", *version)
    if words is None:
        assert done.returncode == 0, done.stderr
    else:
        assert words in done.stderr


@needs_cmake
@pytest.mark.parametrize(
    ("present", "said"),
    [
        (
            (),
            (
                "NvInfer.h is missing, and libnvinfer.so (or libtensorrt_rtx.so) is missing",
                "JetPack",
                "TensorRT or TensorRT-RTX SDK",
                "-DTENSORRT_ROOT=DIR",
                "the Python wheels have no headers",
                "cuda_runtime_api.h is missing",
                "CUDA toolkit",
                "-DCUDAToolkit_ROOT=DIR",
                "-DRNP_TENSORRT=OFF",
            ),
        ),
        (
            ("include/NvInfer.h", "include/cuda_runtime_api.h"),
            ("libnvinfer.so (or libtensorrt_rtx.so) is missing",),
        ),
        (("lib/libnvinfer.so", "include/cuda_runtime_api.h"), ("NvInfer.h is missing",)),
        (("include/NvInfer.h", "lib/libnvinfer.so"), ("cuda_runtime_api.h is missing",)),
        (("include/NvInfer.h", "lib/libtensorrt_rtx.so", "include/cuda_runtime_api.h"), ()),
    ],
)
def test_configuration_says_what_is_missing_and_where_it_comes_from(tmp_path, present, said):
    needed = ("NvInfer.h is missing", "libnvinfer.so (or", "cuda_runtime_api.h is missing")
    for file in present:
        (tmp_path / "sdk" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sdk" / file).touch()
    script = tmp_path / "find.cmake"
    # Of the machine's own nothing is to be found.
    script.write_text(
        'set(CMAKE_FIND_LIBRARY_PREFIXES "lib")\nset(CMAKE_FIND_LIBRARY_SUFFIXES ".so")\n'
        "set(CMAKE_FIND_USE_CMAKE_SYSTEM_PATH OFF)\nset(CMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH OFF)\n"
        "function(add_library)\nendfunction()\nfunction(set_target_properties)\nendfunction()\n"
        f'set(TENSORRT_ROOT "{tmp_path / "sdk"}")\nset(CUDAToolkit_ROOT "{tmp_path / "cuda"}")\nset(CMAKE_MODULE_PATH "{SERVING / "cmake"}")\n'
        "find_package(TensorRT REQUIRED)\n"
    )
    emptied = dict.fromkeys(("TENSORRT_ROOT", "CUDAToolkit_ROOT", "CUDA_HOME"), "")
    done = subprocess.run(
        [str(CMAKE), "-P", str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **emptied},
    )
    told = " ".join(done.stderr.split())
    assert (done.returncode == 0) == (not said), told
    for words in said:
        assert words in told
    for words in needed:
        assert (words in told) == any(words in each for each in said), words


@needs_cmake
@needs_compiler
def test_the_project_stops_without_headers(tmp_path):
    if compiled(*header_folders(), source="#include <NvInfer.h>\n").returncode == 0:
        pytest.skip("TensorRT's headers are installed")
    options = ["-DRNP_TENSORRT=ON", "-DRNP_ONNXRUNTIME=OFF", "-DRNP_BUILD_EXAMPLES=OFF"]
    done = subprocess.run(
        [str(CMAKE), "-S", str(SERVING), "-B", str(tmp_path), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    told = " ".join(done.stderr.split())
    if "nlohmann" in told or "OpenSSL" in told:
        pytest.skip("nlohmann-json or OpenSSL is not installed; apt install nlohmann-json3-dev libssl-dev")
    assert done.returncode != 0
    assert "NvInfer.h is missing" in told
    assert "-DTENSORRT_ROOT=DIR" in told


@pytest.mark.parametrize("kind", ["asan", "tsan"])
def test_the_cuda_parts_run_on_stand_ins(kind):
    serving_build = pytest.importorskip("serving_build")
    program = serving_build.built(kind) / "rnp_cuda_tests"
    done = subprocess.run(
        [str(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=dict(serving_build.environment(kind)),
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
