"""Runs of the C++ controller, on arrays, for comparison with Python's."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnp_deploy import Controller, Result

__all__ = ["Run", "cpp_results", "differences", "python_results"]


@dataclass(frozen=True)
class Run:
    """Rows ``first`` to ``first + batch`` of the images, with these arguments of ``Controller.run``."""

    first: int
    batch: int
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def request(self) -> str:
        """As run_arrays.cpp reads it."""
        arguments = dict(self.arguments)
        if np.ndim(arguments.get("penalty", 0.0)) == 1:
            arguments["penalties"] = arguments.pop("penalty")
        lists = [np.ravel(arguments.get(n, [])) for n in ("penalty", "penalties", "target_macs", "options")]
        words = [f"{len(values)} {' '.join(map(repr, values.tolist()))}" for values in lists]
        return f"{self.first} {self.batch} {arguments.get('policy', 'regroup')} {' '.join(words)}\n"


def cpp_results(
    program: Path,
    package: Path,
    images: NDArray[np.float32],
    runs: Sequence[Run],
    threads: int,
    environment: Mapping[str, str] | None = None,
    memory_budget_bytes: int = 0,
) -> list[Result]:
    """What the C++ controller gives; raises AssertionError with what it says where it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        request = f"{package}\n{threads} {memory_budget_bytes}\n{''.join(run.request() for run in runs)}"
        (folder / "request").write_text(request)
        np.ascontiguousarray(images, np.float32).tofile(folder / "images")
        done = subprocess.run(
            [str(program), name], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-4000:]}"
        outputs = np.fromfile(folder / "outputs", np.float32)
        options = np.fromfile(folder / "options", np.int64)
        macs = np.fromfile(folder / "macs", np.int64)
    rows = np.cumsum([run.batch for run in runs])
    parts = [
        np.split(values.reshape(rows[-1], len(values) // rows[-1]), rows[:-1])
        for values in (outputs, options, macs)
    ]
    return [Result(o, c, m[:, 0]) for o, c, m in zip(*parts, strict=True)]


def python_results(
    package: Path, images: NDArray[np.float32], runs: Sequence[Run], threads: int
) -> list[Result]:
    """What ``Controller`` gives, by ONNX Runtime on the CPU."""
    with Controller.load(package, "onnxruntime", "cpu", threads) as controller:
        return [controller.run(images[r.first : r.first + r.batch], **r.arguments) for r in runs]


def differences(got: Sequence[Result], expected: Sequence[Result]) -> tuple[float, int]:
    """The largest deviation of an output ÷ the largest output, at least 1; and how many rows of options or MACs differ."""
    deviation, rows = 0.0, 0
    for mine, theirs in zip(got, expected, strict=True):
        outputs = theirs.outputs.reshape(len(theirs.outputs), -1)
        assert mine.outputs.shape == outputs.shape
        largest = max(1.0, float(np.abs(outputs).max()))
        deviation = max(deviation, float(np.abs(mine.outputs - outputs).max()) / largest)
        rows += int(((mine.options != theirs.options).any(axis=1) | (mine.macs != theirs.macs)).sum())
    return deviation, rows
