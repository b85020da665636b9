"""What timings depend on, as found now: the machine, its clocks and limits, versions, and the source that runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import rnp_deploy
from rnp_deploy.benchmarking.gpu_environment import gpu_environment, tried
from rnp_deploy.benchmarking.power_rails import is_jetson
from rnp_deploy.engines.fingerprint import processor_name

__all__ = ["environment", "machine_environment"]

_TIMEOUT_S = 2


def environment(threads: int | None, *, device: str = "cpu", root: Path = Path("/")) -> dict[str, Any]:
    """All keys are always there; what is unknown here is None, and nothing raises.

    - of :func:`machine_environment`: ``rnp_deploy``, ``onnxruntime``, ``numpy``, ``python``, ``machine``,
      ``processor``, ``cores``, ``threads``
    - ``os``, ``kernel``, ``memory_bytes``, ``load_1m`` (mean number of processes that computed, in the last minute)
    - ``cores_affinity``: cores this process may use; ``cores_quota``: how many of them at a time, by its control
      groups, None without a limit
    - ``governor``: of all cores, or ``"mixed"``; ``turbo`` and ``smt`` (threads that share a core): whether on
    - ``torch``, ``onnx``, ``tensorrt``: versions loaded, or else installed; ``tensorrt_rtx``: loaded
    - ``git_revision``, ``git_dirty`` (files it tracks differ): of the checkout that rnp_deploy is run from; None of an installed one
    - ``gpu_…``: see :func:`~rnp_deploy.benchmarking.gpu_environment.gpu_environment`; None unless ``device`` is
      ``"cuda"``
    - ``jetson_model``, ``jetson_l4t`` (``"R36.4.3"``), ``jetson_power_mode`` (of nvpmodel), ``jetson_clocks_fixed``
      (whether jetson_clocks pinned CPU and GPU; it tells root alone)

    Args:
        threads: Threads that compute; None is one per core.
        device: ``"cpu"`` or ``"cuda"``.
        root: Where ``/sys``, ``/proc`` and ``/etc`` lie.
    """
    return {
        **machine_environment(threads),
        **_system(root),
        **_processor(root / "sys/devices/system/cpu"),
        **_versions(),
        **_revision(Path(rnp_deploy.__file__).parent),
        **gpu_environment(root, present=device == "cuda"),
        **_jetson(root, present=is_jetson(root)),
    }


def machine_environment(threads: int | None) -> dict[str, str | int | None]:
    """The least that makes timings comparable: versions (of ONNX Runtime where it is loaded), processor, cores, threads."""
    return {
        "rnp_deploy": rnp_deploy.__version__,
        "onnxruntime": getattr(sys.modules.get("onnxruntime"), "__version__", None),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": threads,
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip("\0\n ")


def _said(*command: str) -> str:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
        check=True,
        text=True,
    ).stdout.strip()


def _found(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.MULTILINE)
    return match[1] if match else None


def _system(root: Path) -> dict[str, Any]:
    proc = root / "proc"
    return {
        "os": tried(lambda: _found(r'^PRETTY_NAME="?([^"\n]*)', _text(root / "etc/os-release"))),
        "kernel": tried(lambda: _text(proc / "sys/kernel/osrelease")) or platform.release() or None,
        "memory_bytes": tried(
            lambda: int(_found(r"^MemTotal:\s*(\d+) kB", _text(proc / "meminfo")) or "") * 1024
        ),
        "load_1m": tried(lambda: float(_text(proc / "loadavg").split()[0])),
        "cores_affinity": tried(lambda: len(os.sched_getaffinity(0))),
        "cores_quota": tried(lambda: _cores_quota(root)),
    }


def _cores_quota(root: Path) -> float | None:
    """The narrowest of this process's control groups and those they are in; of version 2 one has no controllers."""
    quotas = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.strip("/")
        groups = [each for each in (group, *group.parents) if each.is_relative_to(top)]
        quotas += [tried(partial(_quota, each)) for each in groups]
    return min((quota for quota in quotas if quota), default=None)


def _quota(group: Path) -> float | None:
    names = ["cpu.max"] if (group / "cpu.max").exists() else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    quota, period = " ".join(_text(group / name) for name in names).split()
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _processor(cpus: Path) -> dict[str, Any]:
    return {
        "governor": tried(lambda: _governor(cpus)),
        "turbo": tried(lambda: _text(cpus / "intel_pstate/no_turbo") == "0")
        if (cpus / "intel_pstate/no_turbo").exists()
        else tried(lambda: _text(cpus / "cpufreq/boost") == "1"),
        "smt": tried(lambda: _text(cpus / "smt/active") == "1"),
    }


def _governor(cpus: Path) -> str | None:
    governors = {_text(path) for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return "mixed" if len(governors) > 1 else next(iter(governors), None)


def _versions() -> dict[str, Any]:
    def loaded(name: str) -> str | None:
        return getattr(sys.modules.get(name), "__version__", None)

    found: dict[str, Any] = {
        name: loaded(name) or tried(partial(importlib.metadata.version, name))
        for name in ("torch", "onnx", "tensorrt")
    }
    return {**found, "tensorrt_rtx": loaded("tensorrt_rtx") or loaded("tensorrt_rtx_bindings")}


def _revision(package: Path) -> dict[str, Any]:
    """Of the checkout that keeps the package's files, not of one that an environment happens to lie in."""

    def described() -> str:
        _said("git", "-C", str(package), "ls-files", "--error-unmatch", "__init__.py")
        return _said(
            "git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"
        )

    said = tried(described)
    return {
        "git_revision": said and said.removesuffix("-dirty"),
        "git_dirty": said and said.endswith("-dirty"),
    }


def _jetson(root: Path, *, present: bool) -> dict[str, Any]:
    probes: dict[str, Callable[[], Any]] = {
        "jetson_model": lambda: _text(root / "proc/device-tree/model"),
        "jetson_l4t": lambda: _l4t(_text(root / "etc/nv_tegra_release")),
        "jetson_power_mode": lambda: _found(r"^NV Power Mode:\s*(\S.*)$", _said("nvpmodel", "-q")),
        "jetson_clocks_fixed": lambda: _clocks_fixed(_said("jetson_clocks", "--show")),
    }
    return {key: tried(probe) if present else None for key, probe in probes.items()}


def _l4t(release: str) -> str | None:
    match = re.search(r"# R(\d+).*REVISION: ([\d.]+)", release)
    return f"R{match[1]}.{match[2]}" if match else None


def _clocks_fixed(shown: str) -> bool | None:
    """Whether the CPU's and GPU's lowest clock is the highest; memory is pinned otherwise."""
    ranges = re.findall(r"^(?:cpu\d+: +Online=1|GPU)\b.*MinFreq=(\d+) +MaxFreq=(\d+)", shown, re.MULTILINE)
    return all(low == high for low, high in ranges) if ranges else None
