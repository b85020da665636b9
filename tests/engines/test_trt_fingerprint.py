"""What keeps an engine set of TensorRT from being loaded: each reason, and what to do."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import sys

import pytest

from fake_tensorrt_builder import fake_tensorrt_builder
from rnp_deploy.engines import trt_fingerprint
from rnp_deploy.engines.trt_fingerprint import environment, misfits, tensorrt_fingerprint
from rnp_deploy.errors import DeviceError, MissingRuntimeError
from tensorrt_cases import GPU, use_tensorrt


@pytest.fixture
def here(monkeypatch):
    """Make this machine one with a GPU and TensorRT 10.3; returns the library."""

    def make(device=GPU, version="10.3.0", cuda=None):
        def probe():
            if device is None:
                raise DeviceError("there is no NVIDIA driver here")
            return device

        def installed(name):
            if cuda is None or name != f"tensorrt_cu{cuda}_bindings":
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(trt_fingerprint, "cuda_device", probe)
        monkeypatch.setattr(trt_fingerprint.importlib.metadata, "version", installed)
        return use_tensorrt(monkeypatch, fake_tensorrt_builder(version, []))

    return make


def other(**changes):
    return dataclasses.replace(GPU, **changes)


def test_where_it_was_built_it_fits(here):
    library = here()
    built = tensorrt_fingerprint(library, GPU, ())
    assert built == {
        "flavor": "tensorrt", "tensorrt": "10.3.0", "machine": platform.machine(), "system": platform.system(),
        "gpu": "Orin", "compute_capability": "8.7", "multiprocessors": "16",
    }  # fmt: skip
    assert misfits(built) == []


@pytest.mark.parametrize(
    ("built", "version", "fit"),
    [
        ("10.3.0", "10.3.0.26", True),
        ("10.3.0.26", "10.3.0", True),
        ("10.3.0.26", "10.3.0.26", True),
        ("10.3.0.30", "10.3.0.26", False),
        ("10.3.0", "10.3.01", False),
        ("10.3.0.2", "10.3.0.26", False),
        ("1", "10.3.0", False),
    ],
)
def test_a_version_may_be_told_with_fewer_numbers(here, built, version, fit):
    recorded = tensorrt_fingerprint(here(version=version), GPU, ()) | {"tensorrt": built}
    assert (misfits(recorded) == []) == fit


@pytest.mark.parametrize(
    ("built", "device", "cuda", "words"),
    [
        ({"tensorrt": "10.3.1"}, GPU, None, ["tensorrt was '10.3.1' and is '10.3.0'", "install that version"]),
        ({"machine": "aarch64!"}, GPU, None, ["machine was 'aarch64!'", "build it on such a machine"]),
        ({"system": "Windows"}, GPU, None, ["system was 'Windows'", "build it on this system"]),
        ({}, None, None, ["no NVIDIA driver here"]),
        ({"tensorrt": "9"}, None, None, ["tensorrt was '9'", "no NVIDIA driver here"]),
        ({}, other(driver_cuda="12.6"), 13, ["driver runs CUDA up to 12.6", "needs CUDA 13", "newer driver"]),
        ({}, other(driver_cuda="13.0"), 12, []),
        ({}, other(compute_capability="9.0"), None, ["built for compute capability '8.7' and Orin has 9.0"]),
        ({}, other(multiprocessors=8), None, ["with 16 multiprocessors", "with 8: build it on this GPU"]),
        ({}, other(name="Thor"), None, ["built on Orin", "here is Thor"]),
    ],
    ids=["version", "machine", "system", "no driver", "two", "driver", "newer driver", "capability", "smaller", "name"],
)  # fmt: skip
def test_what_does_not_fit(here, built, device, cuda, words):
    library = here()
    recorded = tensorrt_fingerprint(library, GPU, ()) | built
    here(device, cuda=cuda)
    reasons = misfits(recorded)
    assert all(word in "; ".join(reasons) for word in words)
    assert len(reasons) == (2 if len(built) == 1 and device is None else bool(words))


@pytest.mark.parametrize(
    ("listed", "capability", "fits"),
    [
        ((), "8.9", True), ((), "12.0", True), ((), "12.1", True), ((), "9.0", False), ((), "7.5", False), ((), "10.0", False),
        (("8.6", "12.0"), "12.0", True), (("8.6", "12.0"), "8.9", False), (("8.6",), "12.0", False),
    ],
)  # fmt: skip
def test_rtx_holds_for_several_gpus_on_any_system(here, listed, capability, fits):
    library = dataclasses.replace(here(other(compute_capability=capability)), flavor="rtx")
    built = tensorrt_fingerprint(library, None, listed) | {"flavor": "tensorrt"}
    assert {"system", "gpu"}.isdisjoint(built)
    assert (misfits(built) == []) == fits


def test_nobody_can_tell_without_the_runtime(here, monkeypatch):
    built = tensorrt_fingerprint(here(), GPU, ())
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingRuntimeError, match="JetPack"):
        misfits(built)


def test_the_environment_is_recorded(here):
    recorded = environment(here(cuda=12), GPU)
    assert recorded.pop("memory_bytes") == str(8 * 2**30)
    assert recorded == {
        "system": platform.system(), "cuda": "12", "gpu": "Orin", "compute_capability": "8.7",
        "multiprocessors": "16", "driver_cuda": "12.6",
    }  # fmt: skip
    assert environment(here(), None) == {"system": platform.system()}
