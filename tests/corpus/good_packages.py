"""Bundles and engine sets that a reader has to take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from damages import replaced_by
from json_texts import GOOD_VALUES
from tiny_packages import Recipe, at, edit, edited, everywhere, resigned, set_manifest_edited

__all__ = ["GOOD_BUNDLES", "GOOD_ENGINE_SETS"]

ENGINES = "engines.json"


def _novelty(value: str, name: str = "manifest.json") -> Any:
    """A key of a newer minor version, written as it is here; its hash is of its values."""

    def change(text: str) -> str:
        newer = text.replace('"format_version": "1.0"', '"format_version": "1.7"', 1)
        return newer.replace('"producer": ', f'"novelty": {value}, "producer": ', 1)

    return resigned(change, name)


def _in_other_words(name: str, **form: Any) -> Any:
    """The same values in another form; ``reverse`` turns the keys of all objects around."""
    reverse = form.pop("reverse", False)

    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(item) for item in value] if isinstance(value, list) else value

    def apply(folder: Path) -> None:
        raw = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(turned(raw) if reverse else raw, **form), encoding="utf-8")

    return apply


def _without_defaults(raw: dict[str, Any]) -> None:
    for key in ("precision", "agent_trained", "precision_report", "calibration", "preprocessing", "classes"):
        del raw[key]
    del raw["agent"]["penalty_range"], raw["verification"]["worst_branch"]
    del raw["convolutions"][0]["decision"], raw["convolutions"][0]["widths"]
    for end in (raw, *raw["stages"]):
        for tensor in (*end["inputs"], *end["outputs"]):
            for key in ("dtype", "axis", *(() if tensor.get("sizes") else ("follows", "sizes"))):
                tensor.pop(key, None)


def _set_without_defaults(raw: dict[str, Any]) -> None:
    for key in ("decisions", "decisions_equal", "max_deviation", "max_batch", "build_options", "environment"):
        del raw[key]
    for step in raw["plan"]["steps"]:
        del step["agent_only"], step["in_place"]
    del raw["plan"]["steps"][2]["decides"]


def _integers_for_numbers(raw: dict[str, Any]) -> None:
    raw["agent"].update(penalty=-(2**63), penalty_range=[2**63 - 1, 0])
    raw["preprocessing"].update(mean=[0], std=[1])
    raw["calibration"]["points"][2]["penalty"] = 2**53 + 1


def _largest(raw: dict[str, Any]) -> None:
    raw["macs"] = raw["agent"]["steps"][0]["macs"] = 2**63 - 1
    raw["agent"]["state_size"] = 2**31 - 1
    raw["stages"][2]["branches"][0].update(macs=2**63 - 1, weight_bytes=2**63 - 1)
    everywhere("x0", {"shape": [2, 2**15, 2**15 - 1], "axis": 2**31 - 1, "sizes": [2**31 - 1]})(raw)


def _names(raw: dict[str, Any]) -> None:
    everywhere("x0", {"name": 'x "\\\n\t\0\x1f\x7f é \U0001f600'})(raw)
    everywhere("x1", {"name": ""})(raw)
    raw["classes"] = ["", "chat é", "\U0001f600\u2028\ufeff"]
    raw["producer"] = "\x01\x10"


def _more_files(folder: Path) -> None:
    """A listed file that nobody uses, an empty one among them, and one that is not listed."""
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for path in ("empty é.txt", "deep/er/..more..", "not listed"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"")
        if path != "not listed":
            edit(folder, "manifest.json", at("files.+", {"path": path, "bytes": 0, "sha256": nothing}))


def _linked(folder: Path) -> Path:
    link = folder.parent / f"{folder.name}-link"
    link.symlink_to(folder)
    return link


def _minus_zero(folder: Path) -> None:
    resigned(lambda text: text.replace('"samples": 2', '"samples": -0'))(folder)


def _many_floats(folder: Path) -> None:
    points = [{"penalty": 1.1**n - 5e3, "accuracy": 3.0**-n, "macs_share": 7.0**n / 3, "option_counts": []}
              for n in range(200)]  # fmt: skip
    edit(folder, "manifest.json", at("calibration.points", points))


def _flipped_engine(folder: Path) -> None:
    data = (folder / "s1/2.onnx").read_bytes()
    (folder / "s1/2.onnx").write_bytes(data[::-1])


def _calibration_forms(text: str) -> str:
    return text.replace('"penalty": -0.1', '"penalty": -1E-1').replace('"penalty": 0.3', '"penalty": 30.0e-2')


GOOD_BUNDLES: list[Recipe] = [
    Recipe(name, "ok", what, make)
    for name, what, make in (
        ("bundle", "as it is written", lambda folder: None),
        ("bundle with unknown keys", "a newer minor version", lambda folder: edit(
            folder, "manifest.json",
            lambda raw: (at("format_version", "1.99999")(raw), at("novelty", {"a": [1]})(raw),
                         at("stages.1.branches.0.novelty", 1)(raw), at("files.0.novelty", None)(raw)))),
        ("bundle version in five digits", "00001.00000 is 1.0", edited(at("format_version", "00001.00000"))),
        ("bundle keys reversed", "keys in any order", _in_other_words("manifest.json", reverse=True)),
        ("bundle compact", "no white space", _in_other_words("manifest.json", separators=(",", ":"))),
        ("bundle spread out", "white space", _in_other_words("manifest.json", indent="\t\t", separators=("\r\n,", " : "))),
        ("bundle not escaped", "raw UTF-8", _in_other_words("manifest.json", ensure_ascii=False)),
        ("bundle through a link", "the directory is a link", _linked),
        ("bundle without defaults", "keys with a default are left out", edited(_without_defaults)),
        ("bundle integers", "integers where numbers are wanted", edited(_integers_for_numbers)),
        ("bundle largest", "the largest values", edited(_largest)),
        ("bundle names", "any characters in names", edited(_names)),
        ("bundle float16", "edges of half precision", edited(everywhere("x1", {"dtype": "float16"}))),
        ("bundle more files", "files that nobody uses", _more_files),
        ("bundle minus zero", "-0 is the integer 0", _minus_zero),
        ("bundle float forms", "floats in other forms", resigned(_calibration_forms)),
        ("bundle many floats", "floats of all sizes", _many_floats),
        ("bundle trailing white space", "white space after the object",
         lambda folder: (folder / "manifest.json").open("ab").write(b"\r\n\t \n")),
        ("bundle untrained", "nothing is known of it", edited(
            lambda raw: raw.update(agent_trained=False, calibration=None, precision_report=None, preprocessing=None,
                                   classes=None))),
        ("bundle beside a folder engines.json", "no engine set", lambda folder: (folder / ENGINES).mkdir()),
        *((f"newer bundle {name}", "JSON in a key of a newer version", _novelty(value)) for name, value in GOOD_VALUES),
    )
]  # fmt: skip

GOOD_ENGINE_SETS: list[Recipe] = [
    Recipe(name, "ok", what, make)
    for name, what, make in (
        ("set", "as it is written", lambda folder: None),
        ("set with unknown keys", "a newer minor version", edited(
            lambda raw: (at("format_version", "1.1")(raw), at("plan.steps.0.novelty", [])(raw),
                         at("plan.tensors.0.novelty", {})(raw)), ENGINES)),
        ("set through a link", "the directory is a link", _linked),
        ("set without defaults", "keys with a default are left out", edited(_set_without_defaults, ENGINES)),
        ("set keys reversed", "keys in any order", _in_other_words(ENGINES, reverse=True, indent=3)),
        ("set with a damaged engine", "engines are hashed when they are opened", _flipped_engine),
        ("set without the bundle's files", "the manifest's files are not there",
         lambda folder: (folder / "agent/0.onnx").unlink()),
        ("set of TensorRT", "another backend", edited(
            lambda raw: raw.update(backend="tensorrt", max_batch=2**31 - 1, fingerprint={}), ENGINES)),
        ("set options of 32 bits", "options in int32", edited(at("plan.tensors.4.dtype", "int32"), ENGINES)),
        ("set in blocks", "channels in blocks, larger than the manifest says", edited(
            lambda raw: (at("plan.tensors.8.sizes", [8, 8])(raw), at("plan.tensors.7.shape", [16, 2, 2])(raw)), ENGINES)),
        ("set in place", "memory used again", edited(at("plan.steps.1.in_place", {"x1": "x0"}), ENGINES)),
        ("set reads twice", "a tensor under two names", edited(at("plan.steps.1.inputs.again", "x0"), ENGINES)),
        ("set not compared", "no deviation", edited(at("max_deviation", None), ENGINES)),
        ("set of a larger network", "a network of another accuracy",
         set_manifest_edited(at("calibration.full_accuracy", 0.5))),
        ("set with a latency curve", "a file that is not listed",
         lambda folder: replaced_by("dangling link", "latency.json")(_touched(folder, "latency.json"))),
        *((f"newer set {name}", "JSON in a key of a newer version", _novelty(value, ENGINES))
          for name, value in GOOD_VALUES[:6]),
    )
]  # fmt: skip


def _touched(folder: Path, name: str) -> Path:
    (folder / name).touch()
    return folder
