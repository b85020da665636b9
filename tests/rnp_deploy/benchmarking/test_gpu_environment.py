"""What is known of a GPU: by its driver, by NVML, and where either lacks something."""

from __future__ import annotations

import sys

import pytest

from fake_nvml import NVMLError, use_fake_nvml
from rnp_deploy.benchmarking import gpu_environment as module
from rnp_deploy.benchmarking.gpu_environment import gpu_environment
from rnp_deploy.engines.cuda_driver import CudaDevice
from rnp_deploy.errors import DeviceError

H100 = CudaDevice("NVIDIA H100", "9.0", 132, 85_000_000_000, "13.0")
OF_DRIVER = {
    "gpu_name": "NVIDIA H100", "gpu_compute_capability": "9.0", "gpu_multiprocessors": 132,
    "gpu_memory_bytes": 85_000_000_000, "gpu_cuda": "13.0",
}  # fmt: skip
REASONS = "nvmlDeviceGetCurrentClocksEventReasons"
ANSWERS = {
    "nvmlSystemGetDriverVersion": "580.65.06",
    "nvmlDeviceGetClockInfo": {1: 345, 2: 2619},
    "nvmlDeviceGetMaxClockInfo": {1: 1980, 2: 2620},
    "nvmlDeviceGetApplicationsClock": {1: 1755, 2: 2618},
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetCurrentEccMode": 1,
    "nvmlDeviceGetMigMode": [0, 1],
    "nvmlDeviceGetTemperature": {0: 41},
    REASONS: 0x1,
}
OF_NVML = {
    "gpu_driver": "580.65.06", "gpu_sm_clock_mhz": 345, "gpu_memory_clock_mhz": 2619, "gpu_sm_clock_max_mhz": 1980,
    "gpu_memory_clock_max_mhz": 2620, "gpu_sm_clock_application_mhz": 1755, "gpu_memory_clock_application_mhz": 2618,
    "gpu_power_limit_w": 700.0, "gpu_persistence": True, "gpu_ecc": True, "gpu_mig": False, "gpu_temperature_c": 41,
    "gpu_throttle_reasons": "idle", "gpu_clocks_locked": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def driver(monkeypatch):
    monkeypatch.setattr(module, "cuda_device", lambda: H100)


def test_all_of_it(tmp_path, monkeypatch):
    use_fake_nvml(monkeypatch, **ANSWERS)
    assert gpu_environment(tmp_path) == OF_DRIVER | OF_NVML


def test_without_a_gpu_every_key_is_none(tmp_path, monkeypatch):
    use_fake_nvml(monkeypatch, **ANSWERS)
    assert gpu_environment(tmp_path, present=False) == dict.fromkeys(OF_DRIVER | OF_NVML)


@pytest.mark.parametrize(
    ("said", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
            "535.104.05",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build", "550.54.14"),
        ("nothing", None),
    ],
)
def test_without_nvml_the_driver_tells_what_it_can(said, version, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(f"{said}\nGCC version:  gcc version 11.4.0\n")
    assert gpu_environment(tmp_path) == dict.fromkeys(OF_NVML) | OF_DRIVER | {"gpu_driver": version}


def test_without_a_driver_nothing_raises(tmp_path, monkeypatch):
    def refused():
        raise DeviceError("no driver")

    use_fake_nvml(monkeypatch, nvmlInit=NVMLError("Driver Not Loaded"))
    monkeypatch.setattr(module, "cuda_device", refused)
    assert gpu_environment(tmp_path) == dict.fromkeys(OF_DRIVER | OF_NVML)


KEYS = {
    "nvmlSystemGetDriverVersion": {"gpu_driver"},
    "nvmlDeviceGetClockInfo": {"gpu_sm_clock_mhz", "gpu_memory_clock_mhz", "gpu_clocks_locked"},
    "nvmlDeviceGetMaxClockInfo": {"gpu_sm_clock_max_mhz", "gpu_memory_clock_max_mhz", "gpu_clocks_locked"},
    "nvmlDeviceGetApplicationsClock": {"gpu_sm_clock_application_mhz", "gpu_memory_clock_application_mhz"},
    "nvmlDeviceGetEnforcedPowerLimit": {"gpu_power_limit_w"},
    "nvmlDeviceGetPersistenceMode": {"gpu_persistence"},
    "nvmlDeviceGetCurrentEccMode": {"gpu_ecc"},
    "nvmlDeviceGetMigMode": {"gpu_mig"},
    "nvmlDeviceGetTemperature": {"gpu_temperature_c"},
    REASONS: {"gpu_throttle_reasons", "gpu_clocks_locked"},
}


@pytest.mark.parametrize("function", KEYS)
@pytest.mark.parametrize("error", [NVMLError("Not Supported"), AttributeError("an old nvidia-ml-py")])
def test_what_a_gpu_does_not_support_is_none_alone(function, error, tmp_path, monkeypatch):
    use_fake_nvml(monkeypatch, **ANSWERS | {function: error})
    assert gpu_environment(tmp_path) == OF_DRIVER | OF_NVML | dict.fromkeys(KEYS[function])


@pytest.mark.parametrize(
    ("bits", "sm_mhz", "reasons", "locked"),
    [
        (0x0, 1980, "none", None),
        (0x1, 1980, "idle", None),
        (0x0, 345, "none", None),
        (0x2, 1755, "application clocks", True),
        (0x3, 345, "idle, application clocks", True),
        (0x1E4, 900, "power cap, software thermal slowdown, hardware thermal slowdown, power brake, display clocks", None),
        (0x18, 900, "hardware slowdown, sync boost", None),
        (0x1000, 1980, "none", None),
    ],
)  # fmt: skip
def test_throttling_and_whether_clocks_are_locked(bits, sm_mhz, reasons, locked, tmp_path, monkeypatch):
    clocks = {"nvmlDeviceGetClockInfo": {1: sm_mhz, 2: 2619}}
    use_fake_nvml(monkeypatch, **ANSWERS | clocks | {REASONS: bits})
    found = gpu_environment(tmp_path)
    assert (found["gpu_throttle_reasons"], found["gpu_clocks_locked"]) == (reasons, locked)
