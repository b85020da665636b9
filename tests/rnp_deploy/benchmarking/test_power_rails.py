"""Power of a Jetson: its rails, tegrastats, and the integral over time."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from rnp_deploy.benchmarking import power_rails
from rnp_deploy.benchmarking.power_rails import SampledPower, is_jetson, jetson_power
from rnp_deploy.errors import DeviceError
from simulated_clock import SimulatedClock

ORIN_NX = {
    "ina3221/1-0040/hwmon/hwmon3/in1_label": "VDD_IN", "ina3221/1-0040/hwmon/hwmon3/in1_input": 5000,
    "ina3221/1-0040/hwmon/hwmon3/curr1_input": 1500, "ina3221/1-0040/hwmon/hwmon3/in2_label": "VDD_SOC",
    "ina3221/1-0040/hwmon/hwmon3/in2_input": 5000, "ina3221/1-0040/hwmon/hwmon3/curr2_input": 400,
    "ina3221/1-0040/hwmon/hwmon3/in7_label": "sum of shunt voltages", "ina3221/1-0040/hwmon/hwmon3/in7_input": 9,
}  # fmt: skip
AGX_ORIN = {
    "ina3221/1-0040/hwmon/hwmon3/in1_label": "VDD_GPU_SOC", "ina3221/1-0040/hwmon/hwmon3/in1_input": 20000,
    "ina3221/1-0040/hwmon/hwmon3/curr1_input": 100, "ina3221/1-0041/hwmon/hwmon4/in3_label": "VIN_SYS_5V0",
    "ina3221/1-0041/hwmon/hwmon4/in3_input": 5000, "ina3221/1-0041/hwmon/hwmon4/curr3_input": 700,
    "ina3221/1-0041/hwmon/hwmon4/in1_label": "NC", "ina3221/1-0041/hwmon/hwmon4/in1_input": 5000,
    "ina3221/1-0041/hwmon/hwmon4/curr1_input": 900, "ina3221/1-0041/hwmon/hwmon4/in2_label": "OFF",
    "ina3221/1-0041/hwmon/hwmon4/in2_input": 5000, "ina3221/1-0041/hwmon/hwmon4/curr2_input": "no data",
}  # fmt: skip
NANO = {
    "ina3221x/6-0040/iio:device0/rail_name_0": "POM_5V_IN", "ina3221x/6-0040/iio:device0/in_power0_input": 2345,
    "ina3221x/6-0040/iio:device0/rail_name_1": "POM_5V_GPU", "ina3221x/6-0040/iio:device0/in_power1_input": 1000,
}  # fmt: skip


def lay_out(root, files):
    for name, text in files.items():
        path = root / "sys/bus/i2c/drivers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def watts(power):
    """What is counted in one second of a clock that stands still before and after it."""
    clock, asked = SimulatedClock(), threading.Semaphore(0)

    @contextmanager
    def sampling():
        with power.sampling() as (samples, stop):
            yield (asked.release() or now for now in samples), stop

    def await_samples(number):  # all but the last of them are in the integral afterwards
        assert all(asked.acquire(timeout=20) for _ in range(number))

    with replace(power, clock=clock, sampling=sampling).counting() as joules:
        await_samples(2)
        clock.spend_ms(1000)
        await_samples(3)
    return joules()


@pytest.mark.parametrize(
    ("files", "source", "expected"),
    [
        (ORIN_NX, "INA3221 rail VDD_IN", 7.5),
        (AGX_ORIN, "sum of INA3221 rails VDD_GPU_SOC + VIN_SYS_5V0", 2 + 3.5),
        (NANO, "INA3221 rail POM_5V_IN", 2.345),
        ({**AGX_ORIN, **NANO}, "INA3221 rail POM_5V_IN", 2.345),
        ({**ORIN_NX, **NANO}, "INA3221 rail VDD_IN", 7.5),
    ],
)
def test_the_rail_of_the_module_or_the_sum_of_all(files, source, expected, tmp_path):
    power = jetson_power(lay_out(tmp_path, files))
    assert power.source == source
    assert watts(power) == pytest.approx(expected)


def test_a_sample_that_fails_is_left_out(tmp_path):
    power = jetson_power(lay_out(tmp_path, NANO))
    lay_out(tmp_path, {"ina3221x/6-0040/iio:device0/in_power0_input": "busy"})
    threading.Timer(0.15, lay_out, (tmp_path, NANO)).start()
    clock = SimulatedClock()
    with replace(power, clock=clock).counting() as joules:
        deadline = time.monotonic() + 20
        while joules() == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
            clock.spend_ms(1)
        assert joules() > 0


def scripted(points):
    """Power at moments ``(ms, watts)``; whether it was ended."""
    clock, ended = SimulatedClock(), []

    def samples():
        for ms, now_watts in points:
            clock.spend_ms(ms)
            yield now_watts

    @contextmanager
    def sampling():
        yield samples(), lambda: ended.append(True)

    return SampledPower("scripted", sampling, clock), ended


def test_energy_is_the_area_under_straight_lines_between_samples():
    power, ended = scripted([(500, 10.0), (100, 20.0), (300, 20.0), (100, 0.0)])
    with power.counting() as joules:
        pass
    assert joules() == pytest.approx(1.5 + 6 + 1)
    assert ended == [True]


def test_sampling_ends_with_the_counting(tmp_path):
    power = jetson_power(lay_out(tmp_path, NANO))
    with pytest.raises(ZeroDivisionError), power.counting():
        assert "power" in [thread.name for thread in threading.enumerate()]
        1 / 0  # noqa: B018
    assert "power" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("RAM 1900/3964MB (lfb 1x4MB) CPU [5%@1479] VDD_IN 4532mW/4500mW VDD_CPU_GPU_CV 500mW/500mW", 4.532),
        ("SWAP 0/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) POM_5V_GPU 40/40 POM_5V_IN 2345/2300", 2.345),
        ("RAM 14700/15692MB GPU@30.5C GPU 463/400 CPU 618/618 CV 0/0 VDDRQ 309/309", 1.39),
        ("VDD_GPU 1000mW/1mW VIN 9000mW/1mW NC 0mW/0mW", 9.0),
    ],
)
def test_tegrastats_is_the_fall_back(line, expected, tmp_path, monkeypatch):
    program = tmp_path / "tegrastats"
    program.write_text(
        '#!/bin/sh\n[ "$*" = "--interval 100" ] || exit 1\n'
        f'while :; do echo "RAM 1/2MB"; echo "{line}"; sleep 0.02; done\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    power = jetson_power(tmp_path)
    assert power.source == "tegrastats, VDD_IN or else the sum of rails"
    assert watts(power) == pytest.approx(expected)


def test_a_jetson_that_shows_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DeviceError, match=r"ina3221\* has no rail that can be read, and tegrastats is not on PATH"
    ):
        jetson_power(lay_out(tmp_path, {"ina3221/1-0040/hwmon/hwmon3/in1_label": "VDD_IN"}))


def test_what_a_jetson_is(tmp_path):
    assert not is_jetson(tmp_path)
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"raspberrypi,4-model-b\0")
    assert not is_jetson(tmp_path)
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0")
    assert is_jetson(tmp_path)
    (tmp_path / "proc/device-tree/compatible").unlink()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release)")
    assert is_jetson(tmp_path)


def test_rails_are_read_often_beside_what_a_network_takes():
    assert 0.01 <= power_rails._PERIOD_S <= 0.02
