"""The C++ library, its examples and its tests, built once in build/serving/KIND of the checkout.

    release  the examples, for benchmarks
    plain    the examples, not optimised
    asan     the tests and the examples, with AddressSanitizer and UBSan
    tsan     the tests and the examples, with ThreadSanitizer

Programs lie in the folder that `built` returns. What is missing is a reason to skip, which names the package.
cpp-httplib is not asked for: without it there is no rnp_serve_example.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from rnp_deploy.engines.ort_sdk import lay_out_sdk
from rnp_deploy.errors import RnpError

__all__ = [
    "REQUIRE_VARIABLE",
    "SERVING",
    "built",
    "configured",
    "environment",
    "missing",
    "onnxruntime_root",
    "require_tools",
]

#: An environment variable; 1: what is missing is a failure and no reason to skip.
REQUIRE_VARIABLE = "RNP_REQUIRE_CPP"

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "engines" / "serving"
BUILD = ROOT / "build" / "serving"
_SUPPRESSIONS = SERVING / "tsan.supp"

#: Header → the Debian package that has it.
_HEADERS = {
    "nlohmann/json.hpp": "nlohmann-json3-dev",
    "openssl/evp.h": "libssl-dev",
}
#: Of the kinds with tests.
_TEST_HEADERS = {"catch2/catch.hpp": "catch2 (version 2)"}
# Not optimised, which takes half the time to compile; what takes time in a run is ONNX Runtime's.
_UNOPTIMISED = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0")
_SANITIZED = (*_UNOPTIMISED, "-DRNP_BUILD_TESTS=ON")
_KINDS = {
    "release": ("-DCMAKE_BUILD_TYPE=Release",),
    "plain": _UNOPTIMISED,
    "asan": (*_SANITIZED, "-DRNP_SANITIZE=address,undefined"),
    "tsan": (*_SANITIZED, "-DRNP_SANITIZE=thread"),
}


@functools.cache
def built(kind: str) -> Path:
    """Build one kind, or what changed of it; skips the test where something is missing.

    Raises:
        AssertionError: It does not build; the message is the compiler's.
    """
    require_tools(tests="-DRNP_BUILD_TESTS=ON" in _KINDS[kind])
    folder = BUILD / kind
    arguments = ("-DRNP_BUILD_EXAMPLES=ON", "-DRNP_WERROR=ON", *_KINDS[kind])
    with _locked(kind):
        _configure_once(folder, (*arguments, f"-DONNXRUNTIME_ROOT={onnxruntime_root()}"))
        _run(["cmake", "--build", str(folder), "--parallel", "2"])
    return folder


def environment(kind: str) -> Mapping[str, str]:
    """Of a program of this kind: any finding ends it with an exit code of its own."""
    exits = "exitcode=99:allocator_may_return_null=1"  # tests ask for more memory than there is
    settings = {
        "ASAN_OPTIONS": f"{exits}:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:exitcode=99",
        # ONNX Runtime is not built with it, so what it does between its threads is not seen.
        "TSAN_OPTIONS": f"{exits}:suppressions={_SUPPRESSIONS}",
    }
    return {**os.environ, **(settings if kind in ("asan", "tsan") else {})}


def configured(folder: Path, source: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Configure a project as here, with the same generator and compiler cache, whatever comes of it."""
    command = ["cmake", "-S", str(source), "-B", str(folder), *_common(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def missing(reason: str) -> NoReturn:
    """Skip the test; where ``RNP_REQUIRE_CPP`` is 1 it fails."""
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{reason} ({REQUIRE_VARIABLE} is set)")
    pytest.skip(reason)


@functools.cache
def require_tools(*, tests: bool = True) -> None:
    """Skip the test where CMake, a compiler or a header is missing; ``tests``: those of the C++ tests too."""
    if shutil.which("cmake") is None:
        missing("cmake is not installed; apt install cmake")
    compiler = next(
        (c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None
    )
    if compiler is None:
        missing("no C++ compiler is installed; apt install g++")
    for header, package in {**_HEADERS, **(_TEST_HEADERS if tests else {})}.items():
        command = [compiler, "-std=c++17", "-M", "-x", "c++", "-"]
        found = subprocess.run(
            command, input=f"#include <{header}>\n", capture_output=True, text=True, check=False
        )
        if found.returncode != 0:
            missing(f"{header} is not installed; apt install {package}")


@functools.cache
def onnxruntime_root() -> Path:
    """ONNX Runtime's library and headers: $ONNXRUNTIME_ROOT, or laid out in the checkout."""
    given = os.environ.get("ONNXRUNTIME_ROOT")
    if given:
        return Path(given)
    folder = BUILD / "onnxruntime"
    with _locked("onnxruntime"):
        try:
            lay_out_sdk(folder)
        except RnpError as err:
            missing(f"{err}; or set ONNXRUNTIME_ROOT")
    return folder


def _configure_once(folder: Path, arguments: Sequence[str]) -> None:
    """Configure where there is nothing, or by other arguments; CMake's own files see to the rest."""
    record, wanted = folder / "arguments.txt", "\n".join((*_common(), *arguments))
    if record.is_file() and record.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = configured(folder, SERVING, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    record.write_text(wanted)


def _common() -> list[str]:
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    return [*ninja, *(["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else [])]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-20_000:]}{done.stderr[-20_000:]}"


@contextmanager
def _locked(name: str) -> Iterator[None]:
    """One process at a time."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
