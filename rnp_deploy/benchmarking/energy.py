"""Energy of an image: what measures the device that computes, and how it is read.

========================  ==========================================  ==============================================
where                     source                                      what it covers
========================  ==========================================  ==============================================
GPU on a card             NVML's total-energy counter (Volta and      the whole card with its memory, of an instance
                          newer); needs ``pip install nvidia-ml-py``  of MIG all others too; not the host
Jetson, GPU or CPU        INA3221 rail ``VDD_IN`` or ``POM_5V_IN``,   the whole module; a sum of rails may count what
                          else the sum of all rails; else tegrastats  hangs on another rail twice, or miss some
CPU                       RAPL, ``package-N`` of Intel and AMD        all packages with every core, whoever uses it;
                                                                      not the memory, fans and power supply
========================  ==========================================  ==============================================

Idle power is always in it. Since Linux 5.10 RAPL is readable by root alone, as it can betray what others compute; until
the next boot ``sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj`` opens it. Virtual machines and most containers
show none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rnp_deploy.benchmarking.clock import WALL, Clock
from rnp_deploy.benchmarking.measures import Energy
from rnp_deploy.benchmarking.nvml import open_nvml
from rnp_deploy.benchmarking.power_rails import is_jetson, jetson_power
from rnp_deploy.errors import DeviceError

__all__ = ["EnergyCounter", "EnergyMeter", "Unmeasured", "measure_energy", "open_energy_meter"]

#: How often a counter is looked at: often beside its ticks, seldom beside what a look costs.
_LOOK_NS = 5_000_000
#: How much longer than asked for a counter that has not ticked is waited for.
_PATIENCE_NS = 1_000_000_000

Images = NDArray[np.float32]


class EnergyMeter(Protocol):
    """What measures energy."""

    @property
    def source(self) -> str:
        """What is counted, in words for a report."""

    def counting(self) -> AbstractContextManager[Callable[[], float]]:
        """Joules since some moment, never less than before; to be called inside.

        Calls raise DeviceError where the counter can no longer be read.
        """


@dataclass(frozen=True)
class EnergyCounter:
    """A counter that the hardware keeps; see :class:`EnergyMeter`."""

    source: str
    joules: Callable[[], float]

    def counting(self) -> AbstractContextManager[Callable[[], float]]:
        """See :class:`EnergyMeter`; reading it is all there is to do."""
        return nullcontext(self.joules)


@dataclass(frozen=True)
class Unmeasured:
    """Why there is no meter."""

    reason: str


def open_energy_meter(device: str, root: Path = Path("/")) -> EnergyMeter | Unmeasured:
    """What measures the device that computes.

    Args:
        device: ``"cpu"`` or ``"cuda"``, the first GPU of this process.
        root: Where ``/sys``, ``/proc`` and ``/etc`` lie.
    """
    try:
        if device not in ("cpu", "cuda"):
            return Unmeasured(f"no counter is known for device {device!r}")
        if is_jetson(root):
            return jetson_power(root)
        return _nvml_counter() if device == "cuda" else _rapl_counter(root / "sys/class/powercap")
    except DeviceError as err:
        return Unmeasured(str(err))


def measure_energy(
    meter: EnergyMeter | Unmeasured,
    contender: Callable[[int, Images], Any],
    parts: Sequence[Images],
    *,
    batch: int,
    seconds: float = 1.0,
    clock: Clock = WALL,
) -> Energy:
    """Energy of one image, with one contender computing all the time and nothing else.

    What the meter covers is counted in full, idle power and what others do meanwhile included. Counters tick every 1
    to 100 ms: energy, time and images are counted from one tick to another at least ``seconds`` later.

    Args:
        meter: Of :func:`open_energy_meter`.
        contender: Called with the index of a part and the part, one after another, again and again; it returns
            when the device is done.
        parts: At least one, each of ``batch`` images ``[N, C, H, W]``.
        batch: Images of a part.
        seconds: Of computing, between the two ticks.
        clock: What time passes by.

    Returns:
        No numbers but the reason where there is no meter, or its counter does not move under work.
    """
    if isinstance(meter, Unmeasured):
        return Energy(reason=meter.reason)
    with meter.counting() as joules:
        try:
            ticks = _ticks(joules, _work(contender, parts, clock), round(seconds * 1e9))
        except _UnreadableError as err:
            return Energy(source=meter.source, reason=str(err))
    if len(ticks) < 2:
        return Energy(source=meter.source, reason=f"{meter.source}: the counter does not move under work")
    first, last = ticks[0], ticks[-1]
    spent, elapsed_ns = last.joules - first.joules, last.ns - first.ns
    if spent <= 0:
        return Energy(source=meter.source, reason=f"{meter.source}: the counter went back")
    return Energy(
        joules_per_image=spent / ((last.runs - first.runs) * batch),
        mean_watts=spent / elapsed_ns * 1e9,
        source=meter.source,
    )


class _UnreadableError(Exception):
    """The counter failed, not the contender, whose errors pass."""


@dataclass(frozen=True)
class _Tick:
    ns: int
    runs: int
    joules: float


def _work(contender: Callable[[int, Images], Any], parts: Sequence[Images], clock: Clock) -> Iterator[int]:
    """Compute; nanoseconds after each run."""
    for i in count():
        contender(i % len(parts), parts[i % len(parts)])
        yield clock.now_ns()


def _ticks(joules: Callable[[], float], runs: Iterator[int], wanted_ns: int) -> list[_Tick]:
    """The changes of the counter that were seen, until they are far enough apart or there is no hope."""
    ticks: list[_Tick] = []
    looks: list[float] = []
    started_ns = looked_ns = next(runs)
    for done, now_ns in enumerate(runs, 2):
        if now_ns - looked_ns < _LOOK_NS:
            continue
        looked_ns = now_ns
        try:
            looks.append(joules())
        except DeviceError as err:
            raise _UnreadableError(str(err)) from err
        if len(looks) > 1 and looks[-1] != looks[-2]:
            ticks.append(_Tick(now_ns, done, looks[-1]))
        enough = ticks and now_ns - ticks[0].ns >= wanted_ns and ticks[-1].ns == now_ns
        if enough or (len(looks) > 2 and now_ns - started_ns >= wanted_ns + _PATIENCE_NS):
            break
    return ticks


def _nvml_counter() -> EnergyCounter:
    nvml = open_nvml()

    def joules() -> float:
        try:
            return float(nvml.module.nvmlDeviceGetTotalEnergyConsumption(nvml.gpu)) / 1e3
        except nvml.module.NVMLError as err:
            raise DeviceError(
                f"NVML started, but the energy counter of {nvml.name} cannot be read: {err}"
            ) from err

    joules()
    return EnergyCounter(f"NVML total-energy counter of {nvml.name}", joules)


def _rapl_counter(folder: Path) -> EnergyCounter:
    domains = [path for path in sorted(folder.glob("intel-rapl:*")) if path.name.count(":") == 1]
    packages = [_RaplPackage(path) for path in domains if _is_package(path)]
    if not packages:
        raise DeviceError(
            f"RAPL: {folder} has no intel-rapl package; on hardware of Intel or AMD sudo modprobe intel_rapl_msr "
            "may show it, virtual machines and containers seldom have one"
        )
    counter = EnergyCounter("RAPL, all packages", lambda: sum(package.joules() for package in packages))
    counter.joules()
    return counter


def _is_package(domain: Path) -> bool:
    """Not the platform (psys), which holds the packages once more."""
    try:
        return (domain / "name").read_text(encoding="utf-8").startswith("package")
    except OSError:
        return False


class _RaplPackage:
    def __init__(self, domain: Path) -> None:
        self._domain = domain
        self._last_uj: int | None = None
        self._total_uj = 0

    def joules(self) -> float:
        """Since the first call; the hardware's register starts again at 0 every few minutes or hours."""
        now_uj = self._number("energy_uj")
        if self._last_uj is not None:
            gone_uj = now_uj - self._last_uj
            self._total_uj += gone_uj if gone_uj >= 0 else gone_uj + self._number("max_energy_range_uj")
        self._last_uj = now_uj
        return self._total_uj / 1e6

    def _number(self, name: str) -> int:
        path = self._domain / name
        try:
            return int(path.read_text(encoding="utf-8"))
        except PermissionError as err:
            opened = path.parents[1] / "intel-rapl:*" / name
            raise DeviceError(f"RAPL: {path} is readable by root alone: sudo chmod a+r {opened}") from err
        except (OSError, ValueError) as err:
            raise DeviceError(f"RAPL: {path} cannot be read: {err}") from err
