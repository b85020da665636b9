"""What an engine set is bound to."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import onnxruntime
import pytest

from rnp_deploy.engines.fingerprint import fingerprint, processor_name
from rnp_deploy.errors import MissingRuntimeError

INTEL = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse4_1 avx fma avx2 avx512 avx2x

processor\t: 1
model name\t: Another CPU
flags\t\t: fpu avx512f
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd fphp sve i8mm\n"


@pytest.fixture
def cpuinfo(monkeypatch):
    fingerprint.cache_clear()
    yield lambda text: monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    monkeypatch.undo()
    fingerprint.cache_clear()


def test_this_machine():
    here = fingerprint()
    assert here["onnxruntime"] == onnxruntime.__version__
    assert here["machine"] == platform.machine()
    assert here["processor"] == processor_name() != ""
    assert list(here) == ["onnxruntime", "machine", "processor", "features"]


def test_what_the_system_tells_of_its_first_processor(cpuinfo):
    cpuinfo(INTEL)
    assert fingerprint()["processor"] == "Some CPU @ 2.00GHz"
    assert fingerprint()["features"] == "sse4_1 avx fma avx2"


def test_arm(cpuinfo):
    cpuinfo(ARM)
    assert fingerprint()["features"] == "asimd fphp i8mm sve"
    assert fingerprint()["processor"] == "unknown"


def test_a_system_that_tells_nothing(cpuinfo, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert fingerprint() | {"machine": "", "onnxruntime": ""} == {
        "onnxruntime": "", "machine": "", "processor": "unknown", "features": "",
    }  # fmt: skip


def test_without_onnxruntime(cpuinfo, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingRuntimeError):
        fingerprint()
