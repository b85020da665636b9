"""A hand-made manifest, engines that know its prices, and bundles that were tampered with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rnp_deploy.bundle.manifest import (
    AgentManifest,
    AgentStepManifest,
    BranchManifest,
    ConvManifest,
    DecisionManifest,
    FileManifest,
    Manifest,
    StageManifest,
    TensorManifest,
    Verification,
)
from rnp_deploy.canonical_json import canonical_sha256
from rnp_deploy.engines.fake import FakeEngine
from simulated_clock import SimulatedClock

__all__ = ["PricedMachine", "bundle_copy", "edit_manifest", "flip", "small_manifest"]


def small_manifest() -> Manifest:
    """Two decisions of two options; the last stage depends on both and on the stem.

    stage 0: images → x0, f0; stage 1 (o0): x0 → x1, f1; stage 2 (o0, o1): x0, x1 → outputs.
    MACs: 1000, 100·o0, 10·o0 + o1.
    """
    images = TensorManifest(name="images", shape=(1, 2, 2))
    x0 = TensorManifest(name="x0", shape=(2, 2, 2))
    f0 = TensorManifest(name="f0", shape=(2,))
    x1 = TensorManifest(name="x1", shape=(4, 2, 2), follows=0, sizes=(2, 4))
    f1 = TensorManifest(name="f1", shape=(4,))
    outputs = TensorManifest(name="outputs", shape=(3,))
    ones = [
        BranchManifest(
            input_options=(), output_option=o, file=f"s1/{o}.onnx", macs=100 * o, weight_bytes=8 * o
        )
        for o in (1, 2)
    ]
    twos = [
        BranchManifest(
            input_options=(a,),
            output_option=b,
            file=f"s2/{a}-{b}.onnx",
            macs=10 * a + b,
            weight_bytes=4 * a * b,
        )
        for a in (1, 2)
        for b in (1, 2)
    ]
    whole = BranchManifest(
        input_options=(), output_option=None, file="s0/full.onnx", macs=1000, weight_bytes=32
    )
    steps = tuple(AgentStepManifest(file=f"agent/{t}.onnx", features=f"f{t}", macs=7) for t in (0, 1))
    graphs = [step.file for step in steps] + [branch.file for branch in (whole, *ones, *twos)]
    return Manifest(
        format_version="1.0",
        producer="tests",
        inputs=(images,),
        outputs=(outputs,),
        groups=2,
        macs=1222,
        agent=AgentManifest(state_size=3, penalty=0.25, steps=steps),
        convolutions=(
            ConvManifest(conv="stem", role="whole", reason="first", macs=1000),
            ConvManifest(conv="conv0", role="prunable", reason="read", macs=200, decision=0, widths=(2, 4)),
            ConvManifest(conv="conv1", role="prunable", reason="read", macs=22, decision=1, widths=(3, 5)),
        ),
        decisions=(
            DecisionManifest(conv="conv0", widths=(2, 4), stage=1),
            DecisionManifest(conv="conv1", widths=(3, 5), stage=2),
        ),
        stages=(
            StageManifest(
                decision=None, input_decisions=(), inputs=(images,), outputs=(x0, f0), branches=(whole,)
            ),
            StageManifest(
                decision=0, input_decisions=(), inputs=(x0,), outputs=(x1, f1), branches=tuple(ones)
            ),
            StageManifest(
                decision=1, input_decisions=(0,), inputs=(x0, x1), outputs=(outputs,), branches=tuple(twos)
            ),
        ),
        files=tuple(FileManifest(path=path, bytes=1, sha256="0" * 64) for path in (*graphs, "weights.bin")),
        verification=Verification(samples=0, tolerance=1e-4),
    )


def bundle_copy(source: Path, target: Path) -> Path:
    """A bundle that may be damaged; ``target`` is returned."""
    shutil.copytree(source, target)
    return target


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object], *, sign: bool = True) -> None:
    """Change the values of a manifest, and sign them again so that only their meaning can be at fault."""
    file = folder / "manifest.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    change(raw)
    if sign:
        raw["manifest_sha256"] = canonical_sha256(raw, without="manifest_sha256")
    file.write_text(json.dumps(raw), encoding="utf-8")


def flip(name: str, at: float = 0.5) -> Callable[[Path], None]:
    """Change one bit of a file, ``at`` 0..1 of its length: a function of the folder it lies in."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(at * (len(data) - 1))] ^= 1
        (folder / name).write_bytes(data)

    return damage


class PricedMachine:
    """Engines of :func:`small_manifest`: image i, filled with i, takes option 2 while the price is at most i / 10.

    That costs 3 ms, else 1 ms; an image of option o is said to be of class o.

    Attributes:
        clock: Moved by what is computed.
        opened_at: How many runs there were when engines were opened.
        runs: (images, price) of every run.
    """

    def __init__(self) -> None:
        self.clock = SimulatedClock()
        self.opened_at = []
        self.runs = []

    def open(self, path):
        self.opened_at.append(len(self.runs))
        folder, name = path.removesuffix(".onnx").split("/")
        return FakeEngine(lambda feeds: getattr(self, folder)(name, feeds))

    def agent(self, name, feeds):
        ids = feeds["features"][:, 0]
        if name == "0":
            self.runs.append((ids.tolist(), round(float(feeds["penalty"][0]), 6)))
        option = np.where(feeds["penalty"] <= ids / 10 + 1e-6, 2, 1).astype(np.int64)
        return {
            "q_values": np.zeros((len(ids), 2), np.float32),
            "option": option,
            "next_state": feeds["state"],
        }

    def s0(self, name, feeds):
        x0 = np.repeat(feeds["images"], 2, axis=1)
        return {"x0": x0, "f0": x0[:, :, 0, 0].copy()}

    def s1(self, name, feeds):
        self.clock.spend_ms(len(feeds["x0"]) * {"1": 1.0, "2": 3.0}[name])
        f1 = np.repeat(feeds["x0"][:, :1, 0, 0], 4, axis=1)
        return {"x1": np.zeros((len(f1), 2 * int(name), 2, 2), np.float32), "f1": f1}

    def s2(self, name, feeds):
        option = int(name.split("-")[0])
        return {"outputs": np.tile(np.eye(3, dtype=np.float32)[option], (len(feeds["x0"]), 1))}
