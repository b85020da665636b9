"""Energy of an image: which counter is read, how ticks are told apart, and why there is no number."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fake_nvml import PCI_ADDRESS, NVMLError, use_fake_nvml
from rnp_deploy.benchmarking import nvml
from rnp_deploy.benchmarking.energy import EnergyCounter, Unmeasured, measure_energy, open_energy_meter
from rnp_deploy.errors import DeviceError
from simulated_clock import SimulatedClock

PARTS = [np.full((4, 1, 2, 2), i, np.float32) for i in range(3)]
COUNTER = "nvmlDeviceGetTotalEnergyConsumption"


def measured(joules_at, ms=10.0, seconds=1.0, clock=None, seen=None):
    """Of a counter that shows ``joules_at(milliseconds since the start)``, while a part takes ``ms``."""
    clock = clock or SimulatedClock()
    started_ns = clock.now_ns()

    def contender(i, part):
        clock.spend_ms(ms)
        if seen is not None:
            seen.append((i, part))

    counter = EnergyCounter("a counter", lambda: joules_at((clock.now_ns() - started_ns) / 1e6))
    return measure_energy(counter, contender, PARTS, batch=4, seconds=seconds, clock=clock)


def ticking(ms):
    """40 W, shown every 100 ms, for the first time after 30."""
    return 4.0 * ((ms + 70) // 100)


def test_energy_is_counted_from_tick_to_tick():
    energy = measured(ticking)
    assert energy.joules_per_image == pytest.approx(40 * 0.010 / 4)
    assert energy.mean_watts == pytest.approx(40)
    assert (energy.source, energy.reason) == ("a counter", None)


def test_it_takes_as_long_as_asked_and_up_to_the_next_tick():
    clock, seen = SimulatedClock(), []
    started_ns = clock.now_ns()
    assert measured(ticking, seconds=0.35, clock=clock, seen=seen).mean_watts == pytest.approx(40)
    assert (clock.now_ns() - started_ns) / 1e6 == pytest.approx(30 + 400)
    assert len(seen) == 43
    assert all(i == n % 3 and part is PARTS[i] for n, (i, part) in enumerate(seen))


def test_runs_longer_than_asked_for_are_measured_too():
    energy = measured(ticking, ms=3000, seconds=1)
    assert energy.joules_per_image == pytest.approx(40 * 3 / 4)


def test_a_counter_is_not_looked_at_all_the_time():
    looks = []

    def joules_at(ms):
        looks.append(ms)
        return ms / 1e3

    energy = measured(joules_at, ms=1.0, seconds=0.1)
    assert energy.mean_watts == pytest.approx(1)
    assert np.diff(looks).min() == pytest.approx(5)
    assert len(looks) == 22


def failing(ms):
    if ms > 500:
        raise DeviceError("the counter is gone")
    return ms


@pytest.mark.parametrize(
    ("joules_at", "words"),
    [
        (lambda ms: 0.0, "a counter: the counter does not move under work"),
        (lambda ms: 5.0, "does not move under work"),
        (lambda ms: float(ms > 700), "does not move under work"),
        (lambda ms: max(0.0, 1000 - ms), "the counter went back"),
        (failing, "the counter is gone"),
    ],
)
def test_a_counter_that_says_nothing_gives_a_reason(joules_at, words):
    clock = SimulatedClock()
    energy = measured(joules_at, clock=clock)
    assert (energy.joules_per_image, energy.mean_watts, energy.source) == (None, None, "a counter")
    assert words in energy.reason
    assert clock.now_ns() <= 3.1e9  # it starts at 1 s


def test_without_a_meter_nothing_is_run():
    energy = measure_energy(Unmeasured("no meter here"), None, PARTS, batch=4)
    assert (energy.joules_per_image, energy.source, energy.reason) == (None, None, "no meter here")


def test_an_error_of_what_is_measured_passes():
    def contender(i, part):
        raise DeviceError("out of memory")

    with pytest.raises(DeviceError, match="out of memory"):
        measure_energy(EnergyCounter("a counter", lambda: 0.0), contender, PARTS, batch=4)


def lay_out(root, **files):
    """Files by their path, ``/`` written ``__``, below the powercap folder."""
    for name, text in files.items():
        path = root / "sys/class/powercap" / name.replace("__", "/").replace("rapl", "intel-rapl:")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


@pytest.fixture
def two_packages(tmp_path):
    for number, energy in (("0", 5_000_000), ("1", 900_000_000)):
        lay_out(tmp_path, **{f"rapl{number}__name": f"package-{number}", f"rapl{number}__energy_uj": energy})
        lay_out(tmp_path, **{f"rapl{number}__max_energy_range_uj": 1_000_000_000})
    lay_out(tmp_path, **{"rapl0:0__name": "package-0-core", "rapl0:0__energy_uj": 77})
    lay_out(tmp_path, rapl2__name="psys", rapl2__energy_uj=88)
    return tmp_path


def test_rapl_adds_up_packages_and_nothing_within_or_around_them(two_packages):
    meter = open_energy_meter("cpu", two_packages)
    assert meter.source == "RAPL, all packages"
    with meter.counting() as joules:
        before = joules()
        lay_out(
            two_packages, rapl0__energy_uj=7_000_000, rapl1__energy_uj=900_500_000, rapl2__energy_uj=10**9
        )
        lay_out(two_packages, **{"rapl0:0__energy_uj": 10**8})
        assert joules() - before == pytest.approx(2.5)


def test_a_rapl_counter_that_starts_again_goes_on(two_packages):
    with open_energy_meter("cpu", two_packages).counting() as joules:
        before = joules()
        for energy, gone in ((950_000_000, 50), (20_000_000, 120), (10_000_000, 1110)):
            lay_out(two_packages, rapl1__energy_uj=energy)
            assert joules() - before == pytest.approx(gone)


def test_rapl_that_fails_later_gives_the_reason(two_packages):
    meter = open_energy_meter("cpu", two_packages)
    lay_out(two_packages, rapl1__energy_uj="nothing")
    clock = SimulatedClock()
    energy = measure_energy(meter, lambda i, part: clock.spend_ms(10), PARTS, batch=4, clock=clock)
    assert "intel-rapl:1/energy_uj cannot be read" in energy.reason


def test_rapl_for_root_alone_says_what_opens_it(two_packages, monkeypatch):
    read = Path.read_text

    def guarded(path, *arguments, **named):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", guarded)
    reason = open_energy_meter("cpu", two_packages).reason
    assert "intel-rapl:0/energy_uj is readable by root alone" in reason
    assert f"sudo chmod a+r {two_packages}/sys/class/powercap/intel-rapl:*/energy_uj" in reason


def test_a_machine_without_rapl_says_so(tmp_path):
    assert (
        f"RAPL: {tmp_path}/sys/class/powercap has no intel-rapl" in open_energy_meter("cpu", tmp_path).reason
    )
    lay_out(tmp_path, rapl0__name="psys", rapl0__energy_uj=5)
    assert "no intel-rapl package" in open_energy_meter("cpu", tmp_path).reason


def test_a_device_nobody_knows(tmp_path):
    assert open_energy_meter("custom", tmp_path).reason == "no counter is known for device 'custom'"


def test_nvml_counts_in_millijoules(monkeypatch, tmp_path):
    fake = use_fake_nvml(monkeypatch, **{COUNTER: 123_456})
    meter = open_energy_meter("cuda", tmp_path)
    assert meter.source == "NVML total-energy counter of NVIDIA H100"
    with meter.counting() as joules:
        assert joules() == pytest.approx(123.456)
        fake.answers[COUNTER] = 124_000
        assert joules() == pytest.approx(124)


def test_nvml_that_starts_but_measures_nothing(monkeypatch, tmp_path):
    use_fake_nvml(monkeypatch)
    reason = open_energy_meter("cuda", tmp_path).reason
    assert reason == "NVML started, but the energy counter of NVIDIA H100 cannot be read: Not Supported"


def test_an_nvml_counter_that_stays_at_0(monkeypatch, tmp_path):
    use_fake_nvml(monkeypatch, **{COUNTER: 0})
    clock = SimulatedClock()
    meter = open_energy_meter("cuda", tmp_path)
    energy = measure_energy(meter, lambda i, part: clock.spend_ms(10), PARTS, batch=4, clock=clock)
    assert energy.reason == "NVML total-energy counter of NVIDIA H100: the counter does not move under work"


def test_another_gpu_than_ours_is_not_measured(monkeypatch, tmp_path):
    use_fake_nvml(monkeypatch, address=b"0000:66:00.0", **{COUNTER: 5})
    assert "no access to the GPU at 0000:66:00.0: Not Found" in open_energy_meter("cuda", tmp_path).reason


def test_nvml_that_does_not_start(monkeypatch, tmp_path):
    use_fake_nvml(monkeypatch, nvmlInit=NVMLError("Driver Not Loaded"))
    assert f"{PCI_ADDRESS.decode()}: Driver Not Loaded" in open_energy_meter("cuda", tmp_path).reason


def test_without_nvidia_ml_py(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in open_energy_meter("cuda", tmp_path).reason


def test_without_a_driver(monkeypatch, tmp_path):
    use_fake_nvml(monkeypatch)

    def refused(*arguments):
        raise DeviceError("there is no NVIDIA driver here")

    monkeypatch.setattr(nvml, "driver_call", refused)
    assert open_energy_meter("cuda", tmp_path).reason == "there is no NVIDIA driver here"


def test_the_real_module_has_the_names_that_are_used():
    pynvml = pytest.importorskip("pynvml")
    source = "".join(
        (Path(nvml.__file__).parent / name).read_text()
        for name in ("nvml.py", "energy.py", "gpu_environment.py")
    )
    names = source.replace('"', " ").replace("(", " ").replace(".", " ").split()
    used = {
        word.strip("),]")
        for word in names
        if word.startswith(("nvmlDevice", "nvmlSystem", "nvmlInit", "NVML_"))
    }
    assert len(used) >= 14
    assert [name for name in used if not hasattr(pynvml, name)] == []


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_a_jetson_the_module_is_measured(device, monkeypatch, two_packages):
    use_fake_nvml(monkeypatch, **{COUNTER: 5})
    (two_packages / "etc").mkdir()
    (two_packages / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3\n")
    monkeypatch.setenv("PATH", "")
    assert open_energy_meter(device, two_packages).reason.startswith("Jetson: ")
