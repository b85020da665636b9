"""What timings depend on: every key is always there, and no probe keeps a benchmark from running."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest

import rnp_deploy
from rnp_deploy.benchmarking import environment as module
from rnp_deploy.benchmarking.environment import environment, machine_environment
from rnp_deploy.benchmarking.gpu_environment import gpu_environment

MACHINE = {"rnp_deploy", "onnxruntime", "numpy", "python", "machine", "processor", "cores", "threads"}


def lay_out(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def put_on_path(folder, monkeypatch, **programs):
    for name, script in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_keys_are_those_that_are_written_down(tmp_path):
    found = environment(3, root=tmp_path)
    written = f"{environment.__doc__} {gpu_environment.__doc__}"
    assert [key for key in found if f"``{key}``" not in written] == []
    assert {key for key in written.split("``") if key.startswith(("gpu_", "jetson_"))} <= {*found, "gpu_…"}
    assert machine_environment(3).items() <= found.items()
    assert set(machine_environment(3)) == MACHINE
    assert (found["threads"], found["cores"]) == (3, os.cpu_count())


def test_nothing_there_gives_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    everywhere = MACHINE | {"kernel", "cores_affinity", "torch", "onnx", "tensorrt", "tensorrt_rtx"}
    found = environment(None, root=tmp_path)
    assert {key for key, value in found.items() if value is not None} <= everywhere


def test_what_is_broken_gives_none_too(tmp_path, monkeypatch):
    names = [
        "etc/os-release", "etc/nv_tegra_release", "proc/meminfo", "proc/loadavg", "proc/self/cgroup", "proc/sys/kernel/osrelease",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "sys/devices/system/cpu/smt/active",
    ]  # fmt: skip
    expected = environment(None, root=tmp_path)
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    put_on_path(tmp_path, monkeypatch, nvpmodel="exit 1", jetson_clocks="echo nothing")
    assert environment(None, root=tmp_path) == expected
    for name in names:
        (tmp_path / name).rmdir()
        (tmp_path / name).write_bytes(b"\xff")
    lay_out(tmp_path, {"sys/devices/system/cpu/smt/active": "0"})
    assert environment(None, root=tmp_path) == expected | {"smt": False}


def test_the_system(tmp_path):
    files = {
        "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\nID=ubuntu\n',
        "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
        "proc/meminfo": "MemTotal:       32768 kB\nMemFree:  5 kB\n",
        "proc/loadavg": "0.52 0.58 0.59 1/977 12345\n",
    }
    found = environment(None, root=lay_out(tmp_path, files))
    assert (found["os"], found["kernel"]) == ("Ubuntu 22.04.5 LTS", "5.15.148-tegra")
    assert (found["memory_bytes"], found["load_1m"]) == (32768 * 1024, 0.52)
    assert found["cores_affinity"] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "800000 100000",
                "sys/fs/cgroup/a/cpu.max": "400000 100000",
            },
            4,
        ),
        ({"proc/self/cgroup": "0::/of/the/host\n", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/cpu.max": "200000 100000"}, None),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n6:cpuset:/x\n4:cpu,cpuacct:/docker/1\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/x/cpu.max": "1 100000",
                "sys/fs/cgroup/cpuset/x/cpu.max": "1 100000",
            },
            0.5,
        ),
    ],
)
def test_the_quota_is_the_narrowest(files, quota, tmp_path):
    assert environment(None, root=lay_out(tmp_path, files))["cores_quota"] == quota


@pytest.mark.parametrize(
    ("files", "key", "value"),
    [
        ({"cpu0/cpufreq/scaling_governor": "performance\n"}, "governor", "performance"),
        (
            {"cpu0/cpufreq/scaling_governor": "schedutil\n", "cpu11/cpufreq/scaling_governor": "schedutil\n"},
            "governor",
            "schedutil",
        ),
        (
            {"cpu0/cpufreq/scaling_governor": "a\n", "cpu11/cpufreq/scaling_governor": "b\n"},
            "governor",
            "mixed",
        ),
        ({"intel_pstate/no_turbo": "0\n"}, "turbo", True),
        ({"intel_pstate/no_turbo": "1\n", "cpufreq/boost": "1\n"}, "turbo", False),
        ({"cpufreq/boost": "1\n"}, "turbo", True),
        ({"cpufreq/boost": "0\n"}, "turbo", False),
        ({"smt/active": "1\n"}, "smt", True),
        ({"smt/active": "0\n"}, "smt", False),
    ],
)
def test_the_processor(files, key, value, tmp_path):
    lay_out(tmp_path / "sys/devices/system/cpu", files)
    assert environment(None, root=tmp_path)[key] == value


def test_versions_are_those_loaded_or_else_installed(tmp_path, monkeypatch):
    for name in ("onnx", "tensorrt", "tensorrt_rtx", "onnxruntime"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="9.9"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", types.SimpleNamespace(__version__="1.7"))
    installed = {"torch": "1.0", "onnx": "1.23"}
    monkeypatch.setattr("importlib.metadata.version", installed.__getitem__)
    found = environment(None, root=tmp_path)
    assert [found[name] for name in ("torch", "onnx", "tensorrt", "tensorrt_rtx", "onnxruntime")] == [
        "9.9", "1.23", None, "1.7", None,
    ]  # fmt: skip
    assert "onnx" not in sys.modules


def git(folder, *arguments):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_revision_is_that_of_the_checkout_that_keeps_the_package(tmp_path, monkeypatch):
    package = tmp_path / "rnp_deploy"
    lay_out(package, {"__init__.py": "", "other.py": ""})
    monkeypatch.setattr(rnp_deploy, "__file__", str(package / "__init__.py"))

    def revision():
        found = environment(None, root=tmp_path)
        return found["git_revision"], found["git_dirty"]

    assert revision() == (None, None)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "rnp_deploy/other.py")
    git(tmp_path, "commit", "-qm", "without the package")
    assert revision() == (None, None)
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "with it")
    git(tmp_path, "tag", "-a", "v1", "-m", "tagged")
    assert revision() == (git(tmp_path, "rev-parse", "HEAD"), False)
    lay_out(package, {"__init__.py": "changed = 1\n"})
    assert revision() == (git(tmp_path, "rev-parse", "HEAD"), True)


JETSON = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0",
}
FIXED = """echo 'SOC family:tegra234  Machine:Orin
cpu0: Online=1 Governor=schedutil MinFreq=1984000 MaxFreq=1984000 CurrentFreq=1984000 IdleStates: WFI=0 c7=0
cpu7: Online=0 Governor=schedutil MinFreq=115200 MaxFreq=1984000 CurrentFreq=1984000
GPU MinFreq={low} MaxFreq=918000000 CurrentFreq=918000000
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1'"""


@pytest.mark.parametrize(("low", "fixed"), [("918000000", True), ("306000000", False)])
def test_a_jetson(low, fixed, tmp_path, monkeypatch):
    programs = {
        "nvpmodel": '[ "$1" = -q ] && printf "NV Fan Mode:quiet\\nNV Power Mode: MAXN SUPER\\n2\\n"',
        "jetson_clocks": f'[ "$1" = --show ] && {FIXED.replace("{low}", low)}',
    }
    put_on_path(tmp_path, monkeypatch, **programs)
    found = environment(None, root=lay_out(tmp_path, JETSON))
    assert {key: value for key, value in found.items() if key.startswith("jetson")} == {
        "jetson_model": "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        "jetson_l4t": "R36.4.3",
        "jetson_power_mode": "MAXN SUPER",
        "jetson_clocks_fixed": fixed,
    }


def test_a_machine_that_is_no_jetson_is_not_asked(tmp_path, monkeypatch):
    put_on_path(tmp_path, monkeypatch, nvpmodel=f"touch {tmp_path}/asked; echo NV Power Mode: MAXN")
    assert environment(None, root=tmp_path)["jetson_power_mode"] is None
    assert not (tmp_path / "asked").exists()


def test_a_program_that_hangs_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.05)
    put_on_path(
        tmp_path, monkeypatch, nvpmodel="echo NV Power Mode: MAXN; exec sleep 60", jetson_clocks="exit 1"
    )
    found = environment(None, root=lay_out(tmp_path, JETSON))
    assert (found["jetson_l4t"], found["jetson_power_mode"]) == ("R36.4.3", None)


def test_the_gpu_is_asked_for_a_gpu_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        module, "gpu_environment", lambda root, present: asked.append((root, present)) or {"gpu_name": "x"}
    )
    assert environment(None, device="cuda", root=tmp_path)["gpu_name"] == "x"
    environment(None, device="cpu", root=tmp_path)
    assert asked == [(tmp_path, True), (tmp_path, False)]
