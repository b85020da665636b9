"""The readers of manifests in C++ against a fuzzer, with AddressSanitizer and UBSan."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from serving_build import SERVING, configured, require_tools

#: The first test to need the C++ programs builds them.
pytestmark = pytest.mark.timeout(1500)

SECONDS = 120


@pytest.mark.slow
def test_the_manifest_reader_stands_two_minutes_of_fuzzing(tmp_path):
    require_tools()
    clang = next((name for name in ("clang++", "clang++-14") if shutil.which(name)), None)
    if clang is None:
        pytest.skip("libFuzzer comes with clang; apt install clang")
    arguments = (
        f"-DCMAKE_CXX_COMPILER={clang}",
        "-DRNP_ONNXRUNTIME=OFF",
        "-DRNP_BUILD_EXAMPLES=OFF",
        "-DRNP_BUILD_FUZZERS=ON",
    )
    done = configured(tmp_path / "build", SERVING, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    build = ["cmake", "--build", str(tmp_path / "build"), "--parallel", "2", "--target", "fuzz_manifest"]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    (tmp_path / "found").mkdir()
    fuzz = [
        str(tmp_path / "build" / "fuzz_manifest"),
        f"-max_total_time={SECONDS}",
        "-timeout=10",
        "-max_len=8192",
        f"-dict={SERVING / 'fuzz' / 'manifest.dict'}",
        f"-artifact_prefix={tmp_path}/",
        str(tmp_path / "found"),
        str(SERVING / "fuzz" / "seeds"),
    ]
    done = subprocess.run(fuzz, capture_output=True, text=True, check=False, timeout=SECONDS + 300)
    assert done.returncode == 0, done.stderr[-8000:]
    assert "Done " in done.stderr  # it ran to its end
