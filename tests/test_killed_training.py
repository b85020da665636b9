"""rnp-train as a process: killed and resumed, and shared by two processes, it makes the same network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from commands import json_report, success
from rnp_deploy.tools.train import main

#: An epoch is 10 minibatches.
TINY = [
    "--device", "cpu", "--widths", "4,8,8,8", "--groups", "2", "--batch-size", "128",
    "--backbone-epochs", "3", "--random-epochs", "3", "--rounds", "4", "--agent-minibatches", "8",
    "--backbone-minibatches", "4", "--calibration-images", "60",
]  # fmt: skip
#: Few steps, since Adam makes much of the rounding that a sum in another order brings.
BRIEF = [
    "--device", "cpu", "--widths", "4,8,8,8", "--groups", "2", "--batch-size", "256",
    "--backbone-epochs", "1", "--random-epochs", "1", "--rounds", "1", "--agent-minibatches", "3",
    "--backbone-minibatches", "2", "--backbone-rate", "1e-3", "--agent-rate", "1e-3",
]  # fmt: skip
COMMAND = ["-m", "rnp_deploy.tools.train"]


def kill_after(row: str, arguments: list[str]) -> list[str]:
    """Run the command and kill it when a row of its table begins with these words; its rows."""
    process = subprocess.Popen(
        [sys.executable, *COMMAND, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    rows = []
    for line in process.stderr:
        rows += [line.strip()] if " % " in line else []
        if line.startswith(row):
            os.kill(process.pid, signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL, rows
    return rows


def test_a_run_killed_three_times_and_resumed_writes_the_same_bytes(tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    begun = [*TINY, "-o", str(out), "--save-every", "0"]
    kill_after("backbone ", begun)
    for row, before in (("random options", "measuring"), ("agent", "backbone ")):
        assert (tmp_path / "out.run" / "state.pt").is_file()
        assert not out.exists()
        rows = kill_after(row, [*begun, "--resume"])
        assert rows[-1].startswith(row)
        assert not rows[0].startswith(before)
    result = success(main, [*begun, "--resume"])
    assert "random options" not in result.stderr  # it went on, and did not begin anew
    success(main, [*TINY, "-o", whole])
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in out.iterdir())
    for name in names:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_two_processes_of_torchrun_train_what_one_does(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, *COMMAND, *BRIEF, "-o", str(tmp_path / "two"), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout)  # of the first process alone
    one = json_report(main, [*BRIEF, "-o", tmp_path / "one"])
    for name in ("samples", "data"):
        assert two["calibration"][name] == one["calibration"][name]
    for point, other in zip(one["calibration"]["points"], two["calibration"]["points"], strict=True):
        assert other["penalty"] == point["penalty"]
        assert other["macs_share"] == pytest.approx(point["macs_share"], abs=0.05)
        assert other["accuracy"] == pytest.approx(point["accuracy"], abs=0.02)
    weights = load_file(tmp_path / "two" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "one" / "model.safetensors").items():
        torch.testing.assert_close(
            weights[name], tensor, atol=1e-4, rtol=1e-3, msg=lambda words, name=name: f"{name}: {words}"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
