"""The power a Jetson draws, from the monitors on its module, summed up over time to energy."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rnp_deploy.benchmarking.clock import WALL, Clock
from rnp_deploy.errors import DeviceError

__all__ = ["SampledPower", "is_jetson", "jetson_power"]

_PERIOD_S = 0.015
#: Rails that everything else hangs on; the last is in front of the carrier board too.
_WHOLE = ("VDD_IN", "POM_5V_IN", "VIN")
#: ``VDD_IN 4532mW/4500mW``, before JetPack 5 ``POM_5V_IN 2345/2345``: now, and the mean; not ``RAM 1900/3964MB``.
_TEGRASTATS_RAIL = re.compile(r"\b([A-Z]\w*) (\d+)(?:mW)?/\d+(?:mW)?(?!\S)")


@dataclass(frozen=True)
class SampledPower:
    """Watts, integrated by a thread for as long as somebody counts (see ``EnergyMeter``).

    Attributes:
        source: What the watts are of.
        sampling: Opens a row of watts, each taken when it comes, and what to call to end it.
        clock: What time passes by.
    """

    source: str
    sampling: Callable[[], AbstractContextManager[tuple[Iterable[float], Callable[[], object]]]]
    clock: Clock = WALL

    @contextmanager
    def counting(self) -> Iterator[Callable[[], float]]:
        """Joules since the first sample, by the trapezoid rule."""
        integral = _Integral(self.clock)
        with self.sampling() as (samples, stop):
            thread = threading.Thread(target=integral.follow, args=(samples,), name="power", daemon=True)
            thread.start()
            try:
                yield lambda: integral.joules
            finally:
                stop()
                thread.join()


class _Integral:
    def __init__(self, clock: Clock) -> None:
        self.joules = 0.0
        self._clock = clock

    def follow(self, samples: Iterable[float]) -> None:
        last: tuple[int, float] | None = None
        for watts in samples:
            now_ns = self._clock.now_ns()
            if last is not None:
                self.joules += (now_ns - last[0]) / 1e9 * (watts + last[1]) / 2
            last = now_ns, watts


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this is one, also inside a container, where ``/etc/nv_tegra_release`` is missing."""
    with suppress(OSError):
        return (root / "etc/nv_tegra_release").exists() or b"nvidia,tegra" in (
            root / "proc/device-tree/compatible"
        ).read_bytes()
    return False


def jetson_power(root: Path = Path("/")) -> SampledPower:
    """The rail of the whole module, else the sum of all rails, as ``source`` says.

    From the INA3221 monitors in sysfs, every 15 ms; else from ``tegrastats``, every 100 ms.

    Raises:
        DeviceError: There is neither.
    """
    drivers = root / "sys/bus/i2c/drivers"
    rails = {
        name: partial(_watts, files) for name, files in _rails(drivers) if name != "NC" and _readable(files)
    }
    if rails:
        names = _that_count(rails)
        source = (
            "INA3221 rail " + names[0] if len(names) == 1 else "sum of INA3221 rails " + " + ".join(names)
        )
        return SampledPower(source, partial(_polled, lambda: sum(rails[name]() for name in names)))
    program = shutil.which("tegrastats")
    if program is None:
        raise DeviceError(
            f"Jetson: {drivers}/ina3221* has no rail that can be read, and tegrastats is not on PATH; "
            "in a container mount /sys and /usr/bin/tegrastats"
        )
    return SampledPower("tegrastats, VDD_IN or else the sum of rails", partial(_told, program))


def _rails(drivers: Path) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Name → files whose product is its power: mV and mA under hwmon, mW under the older iio."""
    for label in sorted(drivers.glob("ina3221*/*/hwmon/hwmon*/in*_label")):
        number = label.name[len("in") : -len("_label")]
        yield _name(label), (label.with_name(f"in{number}_input"), label.with_name(f"curr{number}_input"))
    for label in sorted(drivers.glob("ina3221*/*/iio:device*/rail_name_*")):
        yield _name(label), (label.with_name(f"in_power{label.name[len('rail_name_') :]}_input"),)


def _name(label: Path) -> str:
    try:
        return label.read_text(encoding="utf-8").strip()
    except OSError:
        return label.name


def _readable(files: tuple[Path, ...]) -> bool:
    try:
        _watts(files)
    except (OSError, ValueError):
        return False
    return True


def _watts(files: tuple[Path, ...]) -> float:
    return math.prod(int(file.read_text(encoding="utf-8")) / 1000 for file in files)


def _that_count(rails: Mapping[str, object]) -> list[str]:
    """The rail of the whole module, else all."""
    return [name for name in _WHOLE if name in rails][:1] or list(rails)


@contextmanager
def _polled(watts: Callable[[], float]) -> Iterator[tuple[Iterable[float], Callable[[], object]]]:
    ended = threading.Event()

    def samples() -> Iterator[float]:
        while not ended.wait(_PERIOD_S):
            try:
                now = watts()
            except (OSError, ValueError):  # the bus is shared, and at times busy
                continue
            yield now

    yield samples(), ended.set


@contextmanager
def _told(program: str) -> Iterator[tuple[Iterable[float], Callable[[], object]]]:
    with subprocess.Popen(
        [program, "--interval", "100"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield filter(None, map(_watts_of_line, process.stdout or ())), process.kill


def _watts_of_line(line: str) -> float | None:
    rails = {name: int(milliwatts) for name, milliwatts in _TEGRASTATS_RAIL.findall(line)}
    return sum(rails[name] for name in _that_count(rails)) / 1000 if rails else None
