"""A tiny whole bundle and engine set, made by hand, and ways to change them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rnp_deploy.canonical_json import canonical_sha256, parse_json

__all__ = [
    "DROPPED",
    "HASH_KEYS",
    "Recipe",
    "at",
    "edit",
    "edited",
    "everywhere",
    "resigned",
    "rewritten",
    "set_manifest_edited",
    "signed",
    "write_bundle",
    "write_engine_set",
]

HASH_KEYS = {"manifest.json": "manifest_sha256", "engines.json": "engines_sha256"}
#: As a value for :func:`at`: take the key or entry out.
DROPPED: Any = object()


class Recipe(NamedTuple):
    """How to make a case of a whole package: ``make`` changes the folder; a path that it gives is opened instead.

    ``code`` is what a reader has to say, ``"ok"`` or an error's; ``wrong`` the reason in words.
    """

    name: str
    code: str
    wrong: str
    make: Callable[[Path], object]


def write_bundle(folder: Path) -> None:
    """Two decisions of two options; the last stage depends on both and on the stem.

    stage 0: images → x0, f0; stage 1 (o0): x0 → x1, f1; stage 2 (o0, o1): x0, x1 → outputs.
    """
    _write(folder, "manifest.json", _manifest(), [*_graphs(_manifest()), "weights.bin"])


def write_engine_set(folder: Path) -> None:
    """The same network with the agent inside its pieces."""
    write_bundle(folder)
    raw = _engines() | {"bundle_sha256": _sha256((folder / "manifest.json").read_bytes())}
    pieces = [piece["file"] for step in raw["plan"]["steps"] for piece in step["pieces"]]
    _write(folder, "engines.json", raw, [*pieces, "weights.bin", "timing.cache"])


def signed(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """The values with their hash, which comes last."""
    key = HASH_KEYS[name]
    kept = {k: value for k, value in raw.items() if k != key}
    return kept | {key: canonical_sha256(kept, without=key)}


def edit(folder: Path, name: str, change: Callable[[dict[str, Any]], object], *, sign: bool = True) -> None:
    """Change the values of a JSON file of the folder."""
    raw = json.loads((folder / name).read_text(encoding="utf-8"))
    change(raw)
    raw = signed(raw, name) if sign else raw
    (folder / name).write_text(json.dumps(raw), encoding="utf-8")


def edited(
    change: Callable[[dict[str, Any]], object], name: str = "manifest.json", *, sign: bool = True
) -> Callable[[Path], None]:
    """As :func:`edit`, of the folder that comes."""
    return lambda folder: edit(folder, name, change, sign=sign)


def set_manifest_edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the manifest of an engine set, which then says that it is of that bundle."""

    def apply(folder: Path) -> None:
        edit(folder, "manifest.json", change)
        sha256 = _sha256((folder / "manifest.json").read_bytes())
        edit(folder, "engines.json", at("bundle_sha256", sha256))

    return apply


def at(where: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Put a value at ``key.index.key``, or drop what is there; an index ``+`` adds an entry."""
    *path, last = where.split(".")

    def change(raw: Any) -> None:
        for part in path:
            raw = raw[int(part)] if isinstance(raw, list) else raw[part]
        if last == "+":
            raw.append(value)
            return
        key = int(last) if isinstance(raw, list) else last
        if value is DROPPED:
            del raw[key]
        else:
            raw[key] = value

    return change


def everywhere(name: str, update: dict[str, Any]) -> Any:
    """Change a tensor wherever it is described."""

    def change(raw: dict[str, Any]) -> None:
        ends = [raw, *raw["stages"]]
        for tensor in [tensor for end in ends for tensor in (*end["inputs"], *end["outputs"])]:
            if tensor["name"] == name:
                tensor.update(update)

    return change


def rewritten(change: Callable[[bytes], bytes], name: str = "manifest.json") -> Callable[[Path], None]:
    """Change the bytes of a JSON file, unsigned."""

    def apply(folder: Path) -> None:
        data = (folder / name).read_bytes()
        changed = change(data)
        if changed == data:
            raise ValueError(f"nothing of {name} is changed")
        (folder / name).write_bytes(changed)

    return apply


def resigned(change: Callable[[str], str], name: str = "manifest.json") -> Callable[[Path], None]:
    """Change the text of a JSON file, whose form is kept, and put the hash of its new values in."""

    def apply(folder: Path) -> None:
        key = HASH_KEYS[name]
        text = (folder / name).read_text(encoding="utf-8")
        changed = change(text)
        if changed == text:
            raise ValueError(f"nothing of {name} is changed")
        recorded = parse_json(changed.encode())[key]
        digest = canonical_sha256(parse_json(changed.encode()), without=key)
        (folder / name).write_bytes(changed.replace(recorded, digest).encode())

    return apply


def _write(folder: Path, name: str, raw: dict[str, Any], files: list[str]) -> None:
    listed = []
    for path in dict.fromkeys(files):
        data = f"{name} of {path}\n".encode() * 3
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        listed.append({"path": path, "bytes": len(data), "sha256": _sha256(data)})
    (folder / name).write_text(json.dumps(signed(raw | {"files": listed}, name), indent=1), encoding="utf-8")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _graphs(raw: dict[str, Any]) -> list[str]:
    branches = [branch["file"] for stage in raw["stages"] for branch in stage["branches"]]
    return [step["file"] for step in raw["agent"]["steps"]] + branches


def _tensor(name: str, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "dtype": "float32", "follows": None, "axis": 1, "sizes": []} | more


def _branch(inputs: list[int], own: int | None, file: str) -> dict[str, Any]:
    return {"input_options": inputs, "output_option": own, "file": file, "macs": 10, "weight_bytes": 4}


def _tensors() -> dict[str, dict[str, Any]]:
    tensors = (
        _tensor("images", [1, 2, 2]),
        _tensor("x0", [2, 2, 2]),
        _tensor("f0", [2]),
        _tensor("x1", [4, 2, 2], follows=0, sizes=[2, 4]),
        _tensor("f1", [4]),
        _tensor("outputs", [3]),
    )
    return {tensor["name"]: tensor for tensor in tensors}


def _manifest() -> dict[str, Any]:
    t, options = _tensors(), (1, 2)
    stage_1 = [_branch([], o, f"s1/{o}.onnx") for o in options]
    stage_2 = [_branch([a], b, f"s2/{a}-{b}.onnx") for a in options for b in options]
    return {
        "format_version": "1.0",
        "producer": "tests",
        "inputs": [t["images"]],
        "outputs": [t["outputs"]],
        "precision": "fp32",
        "groups": 2,
        "macs": 30,
        "agent": {
            "state_size": 3,
            "penalty": 0.25,
            "penalty_range": [0.0, 0.5],
            "steps": [{"file": f"agent/{i}.onnx", "features": f"f{i}", "macs": 7} for i in (0, 1)],
        },
        "agent_trained": True,
        "convolutions": [
            {"conv": "stem", "role": "whole", "reason": "first", "macs": 10, "decision": None, "widths": None},
            {"conv": "c0", "role": "prunable", "reason": "read", "macs": 9, "decision": 0, "widths": [2, 4]},
            {"conv": "c1", "role": "prunable", "reason": "read", "macs": 9, "decision": 1, "widths": [3, 5]},
        ],
        "decisions": [
            {"conv": "c0", "widths": [2, 4], "stage": 1},
            {"conv": "c1", "widths": [3, 5], "stage": 2},
        ],
        "stages": [
            {
                "decision": None,
                "input_decisions": [],
                "inputs": [t["images"]],
                "outputs": [t["x0"], t["f0"]],
                "branches": [_branch([], None, "s0/full.onnx")],
            },
            {
                "decision": 0,
                "input_decisions": [],
                "inputs": [t["x0"]],
                "outputs": [t["x1"], t["f1"]],
                "branches": stage_1,
            },
            {
                "decision": 1,
                "input_decisions": [0],
                "inputs": [t["x0"], t["x1"]],
                "outputs": [t["outputs"]],
                "branches": stage_2,
            },
        ],
        "verification": {"samples": 2, "tolerance": 1e-4, "worst_branch": None},
        "precision_report": {
            "data": None, "images": 2, "penalties": [0.25], "decisions": 4, "decisions_equal": 4,
            "margin_median": 0.5, "margin_p5": 0.125, "drift_median": 0.01, "drift_p99": 0.02, "at_risk": 0.0,
            "output_drift_max": 1e-06, "output_drift_mean": 1e-07,
            "by_penalty": [{"penalty": 0.25, "decisions_equal": 1.0, "accuracy": None}],
        },
        "calibration": {
            "data": "hand-made",
            "samples": 4,
            "backbone_accuracy": 0.75,
            "full_accuracy": 0.7,
            "points": [
                {"penalty": p, "accuracy": 0.7, "macs_share": 0.5, "option_counts": [[1, 3], [4, 0]]}
                for p in (-0.1, 0.0, 0.3)
            ],
        },
        "preprocessing": {
            "colour": "L", "size": [2, 2], "shorter_side": 3, "mean": [0.5], "std": [0.25],
        },
        "classes": ["cat", "dog", "een é"],
    }  # fmt: skip


def _engines() -> dict[str, Any]:
    t, options = _tensors(), (1, 2)
    del t["f0"], t["f1"]
    agent = [_tensor("agent/penalty", [])]
    agent += [_tensor(f"agent/state.{i}", [3]) for i in range(3)]
    agent += [_tensor(f"agent/option.{i}", [], dtype="int64") for i in range(2)]

    def piece(chosen: list[int], file: str) -> dict[str, Any]:
        return {"options": chosen, "file": file, "macs": 10, "weight_bytes": 4}

    def step(decisions: list[int], reads: str, makes: str, decides: int | None) -> dict[str, Any]:
        inputs, outputs = ({name: name for name in names.split()} for names in (reads, makes))
        return {
            "option_decisions": decisions, "inputs": inputs, "outputs": outputs, "decides": decides,
            "agent_only": False, "in_place": {},
        }  # fmt: skip

    steps = [
        step([], "images agent/penalty agent/state.0", "x0 agent/state.1 agent/option.0", 0)
        | {"pieces": [piece([], "s0/full.onnx")]},
        step([0], "x0 agent/penalty agent/state.1", "x1 agent/state.2 agent/option.1", 1)
        | {"pieces": [piece([o], f"s1/{o}.onnx") for o in options]},
        step([0, 1], "x0 x1", "outputs", None)
        | {"pieces": [piece([a, b], f"s2/{a}-{b}.onnx") for a in options for b in options]},
    ]
    return {
        "format_version": "1.0",
        "producer": "tests",
        "backend": "onnxruntime",
        "fingerprint": {"onnxruntime": "0.1.0", "machine": "abacus"},
        "plan": {"tensors": [*agent, *t.values()], "steps": steps},
        "decisions": 4,
        "decisions_equal": 4,
        "max_deviation": 1e-06,
        "max_batch": None,
        "build_options": {"layout": "plain"},
        "environment": {},
    }
