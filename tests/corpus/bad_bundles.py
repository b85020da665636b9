"""Bundles that a reader has to refuse, and the code it has to say."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from json_texts import BAD_FILES, BAD_VALUES, VERSIONS
from tiny_packages import DROPPED, Recipe, at, edit, edited, rewritten

__all__ = ["BAD_BUNDLES", "BAD_PATHS", "bad_files", "bad_json", "everywhere", "replaced_by"]

HUGE = 2**31 - 1
#: Paths that leave the directory, or are not written as they should be.
BAD_PATHS = (
    "../weights.bin", "..", ".", "", "/etc/hostname", "/", "//x/y", "a//b", "a/./b", "./a", "a/", "a/.", "a/../b", "a/..",
    "C:x", "C:/x", "a\\b", "a\0b", "\0",
)  # fmt: skip

#: Where, value, what is wrong: of one field by itself.
FIELDS: tuple[tuple[str, Any, str], ...] = (
    ("novelty", 1, "an unknown key"),
    ("stages.1.branches.0.novelty", None, "an unknown key inside"),
    ("calibration.points.0.novelty", {}, "an unknown key inside"),
    ("producer", DROPPED, "a key is missing"),
    ("producer", None, "null for a text"),
    ("producer", 1, "a number for a text"),
    ("agent", DROPPED, "the agent is missing"),
    ("agent", [], "an array for an object"),
    ("verification", None, "null for an object"),
    ("inputs", [], "no input"),
    ("inputs.+", {"name": "more", "shape": [1]}, "two inputs"),
    ("outputs", {}, "an object for an array"),
    ("inputs.0.name", None, "null for a name"),
    ("inputs.0.shape", 4, "a number for an array"),
    ("inputs.0.shape.1", 0, "a side of nothing"),
    ("inputs.0.shape.1", -1, "a side below nothing"),
    ("inputs.0.shape.1", 2**31, "a side of 2^31"),
    ("inputs.0.shape.1", 2.0, "a float for an integer"),
    ("inputs.0.shape.1", "2", "a text for an integer"),
    ("inputs.0.shape.1", True, "true for an integer"),
    ("inputs.0.shape.1", None, "null for an integer"),
    ("inputs.0.dtype", "float64", "a type there is not"),
    ("inputs.0.dtype", "Float32", "a type in another case"),
    ("inputs.0.dtype", None, "null where it may only be left out"),
    ("inputs.0.axis", 0, "the axis of the batch"),
    ("inputs.0.sizes", None, "null where it may only be left out"),
    ("stages.1.outputs.0.follows", -1, "a decision below 0"),
    ("stages.1.outputs.0.follows", 0.0, "a float for a decision"),
    ("precision", "fp8", "a precision there is not"),
    ("precision", None, "null where it may only be left out"),
    ("groups", 1, "one group"),
    ("groups", "2", "a text for an integer"),
    ("groups", 2.0, "a float for an integer"),
    ("groups", 2**31, "2^31 groups"),
    ("macs", 0, "a network without MACs"),
    ("macs", -5, "MACs below 0"),
    ("macs", 30.0, "a float for MACs"),
    ("agent_trained", 1, "a number for a truth"),
    ("agent_trained", None, "null for a truth"),
    ("agent.state_size", 0, "a state of nothing"),
    ("agent.state_size", 2**31, "a state of 2^31"),
    ("agent.penalty", "0.25", "a text for a number"),
    ("agent.penalty", True, "true for a number"),
    ("agent.penalty", None, "null for a number"),
    ("agent.penalty_range", [0.0], "a range of one number"),
    ("agent.penalty_range", [0.0, 0.1, 0.2], "a range of three numbers"),
    ("agent.penalty_range", 0.5, "a number for a range"),
    ("agent.steps.0.features", DROPPED, "a step without features"),
    ("agent.steps.0.macs", -1, "a step of MACs below 0"),
    ("convolutions.0.role", "wide", "a role there is not"),
    ("convolutions.0.widths", [0], "a width of nothing"),
    ("convolutions.0.decision", "0", "a text for a decision"),
    ("decisions", [], "no decisions"),
    ("decisions.0.widths", [4], "a decision of one option"),
    ("decisions.0.stage", 0, "a decision that opens stage 0"),
    ("decisions.0.stage", True, "true for a stage"),
    ("stages.0.decision", DROPPED, "a key is missing that may be null"),
    ("stages.1.branches", [], "a stage without branches"),
    ("stages.1.branches.0.output_option", DROPPED, "a key is missing that may be null"),
    ("stages.1.branches.0.output_option", 0, "option 0"),
    ("stages.1.branches.0.macs", 1.5, "a float for MACs"),
    ("stages.1.branches.0.weight_bytes", -1, "bytes below 0"),
    ("stages.1.branches.0.file", ["s1/1.onnx"], "an array for a path"),
    ("stages.2.inputs", [], "a stage that reads nothing"),
    ("files", {}, "an object for an array"),
    ("files.0", "s0/full.onnx", "a text for a file"),
    ("files.0.path", 1, "a number for a path"),
    ("files.0.path", DROPPED, "a file without a path"),
    ("files.0.bytes", -1, "bytes below 0"),
    ("files.0.bytes", 51.0, "a float for bytes"),
    ("files.0.sha256", "0" * 63, "a sha256 too short"),
    ("files.0.sha256", "0" * 65, "a sha256 too long"),
    ("files.0.sha256", "0" * 64 + "\n", "a sha256 with a line feed after it"),
    ("files.0.sha256", "A" * 64, "a sha256 in capitals"),
    ("files.0.sha256", "g" * 64, "a sha256 of other letters"),
    ("verification.samples", -1, "samples below 0"),
    ("verification.tolerance", DROPPED, "no tolerance"),
    ("verification.branches", None, "null where it may only be left out"),
    ("verification.worst_branch", 3, "a number for a text"),
    ("precision_report.data", DROPPED, "a key is missing that may be null"),
    ("precision_report.penalties", None, "null for an array"),
    ("precision_report.at_risk", "0", "a text for a number"),
    ("precision_report.by_penalty.0.penalty", DROPPED, "a key is missing"),
    ("calibration.points", [], "a curve without points"),
    ("calibration.points.0.option_counts.0.0", -1, "a count below 0"),
    ("calibration.points.0.option_counts.0", 4, "a number for an array"),
    ("calibration.points.0.accuracy", None, "null for a number"),
    ("calibration.data", None, "null for a text"),
    ("preprocessing.colour", "RGBA", "a colour there is not"),
    ("preprocessing.size", [2], "one side"),
    ("preprocessing.size", [2, 2, 2], "three sides"),
    ("preprocessing.std.0", 0, "a deviation of 0"),
    ("preprocessing.std.0", -0.25, "a deviation below 0"),
    ("preprocessing.shorter_side", 0, "a side of nothing"),
    ("classes", "cat", "a text for an array"),
    ("classes.0", None, "null for a name"),
)  # fmt: skip

#: Where, value, what is wrong: each field is as it should be, and they do not fit together.
MISFITS: tuple[tuple[str, Any, str], ...] = (
    ("inputs.0.shape", [2**11, 2**10, 2**10], "2^31 values a sample"),
    ("inputs.0.shape", [HUGE] * 8, "more values than 64 bits count"),
    ("inputs.0.shape", [2**16] * 8, "values whose number is 0 modulo 2^64"),
    ("inputs.0.shape", [HUGE] * 10**5, "a hundred thousand huge sides"),
    ("stages.1.outputs.0.sizes", [2, 2**30], "more values at the largest size"),
    ("outputs.0.sizes", [HUGE, HUGE], "more values at the largest size, which nothing follows"),
    ("inputs.0.dtype", "float16", "images that are not float32"),
    ("inputs.0.follows", 7, "images that follow a decision"),
    ("outputs.0.dtype", "bfloat16", "outputs that are not float32"),
    ("outputs.0.follows", 0, "outputs that follow a decision"),
    ("decisions.+", {"conv": "c2", "widths": [1, 2], "stage": 3}, "a decision without stage and step"),
    ("decisions.1", DROPPED, "a stage and a step too many"),
    ("agent.steps.1", DROPPED, "a step too few"),
    ("stages.2", DROPPED, "a stage too few"),
    ("decisions.0.stage", 2, "a decision that opens another stage"),
    ("decisions.0.widths", [4, 2], "widths that fall"),
    ("decisions.0.widths", [4, 4], "widths that stay"),
    ("decisions.0.widths", [1, 4], "widths that the convolutions do not say"),
    ("decisions.0.conv", "c9", "a decision of no convolution"),
    ("convolutions.1", DROPPED, "a decision whose convolution is not listed"),
    ("convolutions.1.decision", 1, "a convolution of another decision"),
    ("groups", 3, "more groups than any decision has options"),
    ("groups", HUGE, "2^31-1 groups"),
    ("stages.0.decision", 0, "a stem with a decision"),
    ("stages.1.decision", None, "a stage without its decision"),
    ("stages.2.decision", 0, "a stage of another decision"),
    ("stages.2.decision", 10**12, "a stage of a decision there is not"),
    ("stages.2.input_decisions", [], "a stage without the decision that its input follows"),
    ("stages.2.input_decisions", [0, 0], "an input decision twice"),
    ("stages.2.input_decisions", [1], "an input decision that is its own"),
    ("stages.2.input_decisions", [2**62], "an input decision there is not"),
    ("stages.1.input_decisions", [0], "an input decision that is not taken yet"),
    ("stages.2.inputs.0.name", "x9", "an input that nobody makes"),
    ("stages.2.inputs.0.shape", [2, 2, 3], "an input of another shape"),
    ("stages.2.inputs.0.dtype", "float16", "an input of another type"),
    ("stages.2.inputs.1.sizes", [1, 4], "an input of other sizes"),
    ("stages.2.inputs.1.axis", 2, "an input of another axis"),
    ("stages.0.inputs.0.name", "outputs", "an input that is made later"),
    ("stages.1.outputs.1.name", "x1", "an output twice in a stage"),
    ("stages.1.outputs.1.name", "x0", "an output that was made before"),
    ("stages.1.outputs.1.name", "images", "an output named as the images"),
    ("stages.1.outputs.+", {"name": "agent/penalty", "shape": [1]}, "an output with a name of the agent's"),
    ("stages.1.outputs.0.follows", 1, "an output that follows a later decision"),
    ("stages.1.outputs.0.follows", 2**40, "an output that follows a decision there is not"),
    ("stages.1.outputs.0.sizes", [4], "a size too few"),
    ("stages.1.outputs.0.sizes", [], "no sizes"),
    ("stages.1.outputs.0.sizes", [1, 2, 4], "a size too many"),
    ("stages.1.outputs.0.sizes", [4, 4], "sizes that stay"),
    ("stages.1.outputs.0.sizes", [2, 3], "a largest size that is not the shape's"),
    ("stages.1.outputs.0.axis", 4, "an axis there is not"),
    ("stages.1.outputs.0.axis", HUGE, "an axis of 2^31-1"),
    ("stages.2.outputs.0.name", "answer", "an output of the network that nobody makes"),
    ("outputs.0.shape", [4], "an output of the network of another shape"),
    ("agent.steps.1.features", "f9", "features that nobody makes"),
    ("agent.steps.0.features", "f1", "features that are made too late"),
    ("agent.steps.1.features", "x0", "features that are not pooled"),
    ("stages.1.outputs.1.follows", 0, "features that follow a decision, in no sizes"),
    ("stages.2.branches.3", DROPPED, "a branch too few"),
    ("stages.0.branches.+",
     {"input_options": [], "output_option": None, "file": "s0/full.onnx", "macs": 1, "weight_bytes": 1},
     "two branches of the stem"),
    ("stages.2.branches.0.output_option", 2, "two branches for the same options"),
    ("stages.2.branches.0.output_option", 3, "an option there is not"),
    ("stages.2.branches.0.input_options", [HUGE], "an option of 2^31-1"),
    ("stages.2.branches.0.output_option", None, "a branch without its own option"),
    ("stages.0.branches.0.output_option", 1, "a stem with an option"),
    ("stages.2.branches.0.input_options", [], "a branch without its input option"),
    ("stages.2.branches.0.input_options", [1, 1], "a branch of two input options"),
    ("stages.1.branches.0.file", "weights.bin", "a branch that is no graph"),
    ("stages.1.branches.0.file", "s9/1.onnx", "a branch that is not listed"),
    ("agent.steps.0.file", "agent/9.onnx", "a step that is not listed"),
    ("files.0", DROPPED, "a step's file that is not listed"),
    ("files.9", DROPPED, "weights that are not listed"),
    ("files.0.path", "weights.bin", "a file listed twice"),
    ("calibration.points.2.penalty", 0.0, "penalties that stay"),
    ("calibration.points.2.penalty", -0.5, "penalties that fall"),
    ("calibration.points.1.penalty", -0.1, "penalties that are the same"),
    ("preprocessing.mean", [0.5, 0.5], "two means for one channel"),
    ("preprocessing.std", [], "no deviations"),
    ("preprocessing.colour", "RGB", "one mean for three channels"),
    ("preprocessing.size", [2, 3], "images of another size"),
    ("preprocessing.shorter_side", 1, "a cut larger than the image"),
    ("classes", ["cat", "dog"], "a class too few"),
    ("classes", [], "no classes"),
)  # fmt: skip


#: Tensor, what is changed wherever it stands, what is wrong.
TENSORS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("images", {"dtype": "float16"}, "images that are not float32, everywhere"),
    ("outputs", {"dtype": "bfloat16"}, "outputs that are not float32, everywhere"),
    ("outputs", {"follows": 1, "sizes": [2, 3]}, "outputs that follow a decision, everywhere"),
    ("f1", {"follows": 0, "sizes": [2, 4]}, "features that follow a decision"),
    ("f0", {"shape": []}, "features without channels"),
    ("x0", {"name": "agent/state.0"}, "a tensor with a name of the agent's"),
    ("images", {"name": "agent/penalty"}, "images with a name of the agent's"),
    ("x1", {"sizes": [2, 4], "shape": [4, 2**15, 2**15]}, "2^32 values a sample, everywhere"),
)


def bad_json(name: str = "manifest.json") -> list[Recipe]:
    """Of either file: it is no JSON as the format wants it."""
    old = b'"producer": "tests"'

    def value(new: bytes) -> Any:
        return rewritten(lambda data: data.replace(old, b'"producer": ' + new), name)

    def around(before: bytes, after: bytes) -> Any:
        return rewritten(lambda data: before + data + after, name)

    def whole(data: bytes) -> Any:
        return rewritten(lambda _: data, name)

    cases = [Recipe(f"{name} {kind}", "json", wrong, value(new)) for kind, new, wrong in BAD_VALUES]
    cases += [Recipe(f"{name} {kind}", "json", wrong, around(a, b)) for kind, a, b, wrong in BAD_FILES]
    return [
        *cases,
        Recipe(f"{name} empty", "json", "an empty file", whole(b"")),
        Recipe(f"{name} of white space", "json", "white space alone", whole(b" \n")),
        Recipe(f"{name} an array", "json", "an array at the top level", whole(b"[]")),
        Recipe(f"{name} a number", "json", "a number at the top level", whole(b"1")),
        Recipe(f"{name} null", "json", "null at the top level", whole(b"null")),
        Recipe(f"{name} cut", "json", "half a file", rewritten(lambda data: data[: len(data) // 2], name)),
        Recipe(f"{name} in utf-16", "json", "UTF-16", rewritten(lambda d: d.decode().encode("utf-16"), name)),
        Recipe(f"{name} too large", "json", "more than 64 MiB", lambda f: os.truncate(f / name, 65 * 2**20)),
        Recipe(f"{name} only a brace", "json", "a brace", whole(b"{")),
        *_bad_versions(name),
        *_bad_hashes(name),
    ]


def _bad_versions(name: str) -> list[Recipe]:
    cases = [
        Recipe(f"{name} version {version!r}", "version", f"format_version {version!r}",
               edited(at("format_version", version), name))
        for version in VERSIONS
    ]  # fmt: skip
    nothing = rewritten(lambda _: b"{}", name)
    later = rewritten(lambda _: b'{"format_version": "7.3", "all": "new"}', name)
    return [
        *cases,
        Recipe(f"{name} no version", "version", "no version", edited(at("format_version", DROPPED), name)),
        Recipe(f"{name} no keys", "version", "an object without keys", nothing),
        Recipe(f"{name} of the future", "version", "another major version, and nothing else known", later),
    ]


def _bad_hashes(name: str) -> list[Recipe]:
    key = {"manifest.json": "manifest_sha256", "engines.json": "engines_sha256"}[name]

    def of_hash(change: Any) -> Any:
        return edited(lambda raw: raw.update({key: change(raw[key])}), name, sign=False)

    unsigned = {
        "changed value": (at("producer", "another"), "a value is changed"),
        "integer as float": (
            at("files.0.bytes", 1.0),
            "a value is changed, though equal to what may be meant",
        ),
        "unsigned key": (at("novelty", None), "a key more"),
        "missing hash": (at(key, DROPPED), "no hash"),
        "null hash": (at(key, None), "null for the hash"),
        "number hash": (at(key, 0), "a number for the hash"),
    }
    return [
        *(Recipe(f"{name} {kind}", "values-hash", wrong, edited(change, name, sign=False))
          for kind, (change, wrong) in unsigned.items()),
        Recipe(f"{name} hash in capitals", "values-hash", "the hash in capitals", of_hash(str.upper)),
        Recipe(f"{name} hash and more", "values-hash", "the hash with a space", of_hash(lambda h: h + " ")),
        Recipe(f"{name} hash of the bytes", "values-hash", "another hash", of_hash(lambda h: h[::-1])),
    ]  # fmt: skip


def replaced_by(kind: str, name: str) -> Any:
    """Put something else in the place of a file or folder."""

    def apply(folder: Path) -> None:
        path, elsewhere = folder / name, folder.parent / f"{folder.name}-elsewhere"
        if kind == "link":
            path.rename(elsewhere)
            path.symlink_to(elsewhere)
            return
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "dangling link":
            path.symlink_to(elsewhere)
        elif kind == "link to itself":
            path.symlink_to(path.name)
        elif kind == "device":
            path.symlink_to("/dev/zero")

    return apply


def bad_files(name: str, hashed: bool = True) -> list[Recipe]:
    """A listed file that is not as it was written; engines are only hashed when they are opened."""

    def changed(change: Any) -> Any:
        return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))

    def flipped(at: int) -> Any:
        return changed(lambda d: d[:at] + bytes([d[at] ^ 1]) + d[at:][1:])

    cases = [
        Recipe(f"{name} {kind}", "link", f"{name} is a link", replaced_by(kind, name))
        for kind in ("link", "dangling link", "link to itself", "device")
    ]
    cases += [
        Recipe(f"{name} missing", "file-missing", f"{name} is missing", replaced_by("nothing", name)),
        Recipe(f"{name} a folder", "file-size", f"{name} is a folder", replaced_by("folder", name)),
        Recipe(f"{name} a pipe", "file-size", f"{name} is a pipe", replaced_by("pipe", name)),
        Recipe(f"{name} empty", "file-size", f"{name} is empty", changed(lambda _: b"")),
        Recipe(f"{name} shorter", "file-size", f"{name} is a byte shorter", changed(lambda d: d[:-1])),
        Recipe(f"{name} longer", "file-size", f"{name} is a byte longer", changed(lambda d: d + b"\n")),
    ]
    if hashed:
        cases += [
            Recipe(f"{name} first bit", "file-hash", f"the first byte of {name} is flipped", flipped(0)),
            Recipe(f"{name} last bit", "file-hash", f"the last byte of {name} is flipped", flipped(-1)),
        ]
    return cases


def _bad_paths() -> list[Recipe]:
    def last_file(path: str) -> Any:
        return lambda raw: raw["files"][-1].update(path=path)

    cases = [
        Recipe(f"path {path!r}", "path", f"the path {path!r}", edited(last_file(path))) for path in BAD_PATHS
    ]
    also_wrong = lambda raw: (last_file("../x")(raw), raw.update(novelty=1))  # noqa: E731
    not_only = lambda raw: raw.update(files=[1, {"path": 2}, {"path": "/x"}])  # noqa: E731
    return [
        *cases,
        Recipe(
            "path of 300 letters", "unreadable", "a name that no file can have", edited(last_file("a" * 300))
        ),
        Recipe("path before fields", "path", "a path, looked at before the fields", edited(also_wrong)),
        Recipe("path beside other entries", "path", "a path behind entries that are none", edited(not_only)),
        Recipe("path through a file", "file-missing", "a file as a folder", edited(last_through_a_file)),
    ]


def last_through_a_file(raw: dict[str, Any]) -> None:
    """A file more, below one that is no folder."""
    raw["files"].append({"path": "weights.bin/x", "bytes": 1, "sha256": "0" * 64})


def _bad_folders() -> list[Recipe]:
    def link_before_path(folder: Path) -> None:
        replaced_by("link", "agent/0.onnx")(folder)
        edit(folder, "manifest.json", at("files.9.path", "../x"))

    return [
        Recipe("folder missing", "missing", "there is nothing", lambda f: shutil.rmtree(f)),
        Recipe("folder a file", "missing", "a file for a directory", lambda f: f / "weights.bin"),
        Recipe("folder a dangling link", "missing", "a link to nothing", dangling),
        Recipe(
            "folder of a long name", "unreadable", "a name that nothing can have", lambda f: f / ("a" * 300)
        ),
        Recipe(
            "folder inside a file", "missing", "a directory inside a file", lambda f: f / "weights.bin" / "x"
        ),
        Recipe("manifest missing", "missing", "no manifest", replaced_by("nothing", "manifest.json")),
        Recipe("manifest a folder", "missing", "a folder", replaced_by("folder", "manifest.json")),
        Recipe("manifest a pipe", "missing", "a pipe", replaced_by("pipe", "manifest.json")),
        Recipe("manifest a link", "link", "a link", replaced_by("link", "manifest.json")),
        Recipe("manifest a dangling link", "link", "a link", replaced_by("dangling link", "manifest.json")),
        Recipe("manifest a link to a device", "link", "a link", replaced_by("device", "manifest.json")),
        Recipe("link on the way", "link", "a folder on the way is a link", replaced_by("link", "s2")),
        Recipe("link before a path", "link", "the first of two bad entries is told", link_before_path),
    ]


def dangling(folder: Path) -> None:
    """A link to nothing instead of the folder."""
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "nowhere")


def _fields() -> list[Recipe]:
    return [
        Recipe(f"{kind} {where} {i}", "fields", wrong, edited(at(where, value)))
        for kind, table in (("field", FIELDS), ("misfit", MISFITS))
        for i, (where, value, wrong) in enumerate(table)
    ] + [
        Recipe(f"tensor {name} {i}", "fields", wrong, edited(everywhere(name, update)))
        for i, (name, update, wrong) in enumerate(TENSORS)
    ]


def everywhere(name: str, update: dict[str, Any]) -> Any:
    """Change a tensor wherever it is described."""

    def change(raw: dict[str, Any]) -> None:
        ends = [raw, *raw["stages"]]
        for tensor in [tensor for end in ends for tensor in (*end["inputs"], *end["outputs"])]:
            if tensor["name"] == name:
                tensor.update(update)

    return change


BAD_BUNDLES: list[Recipe] = [
    *_bad_folders(),
    *bad_json(),
    *_bad_paths(),
    *_fields(),
    *bad_files("weights.bin"),
    *bad_files("s2/1-2.onnx"),
    Recipe("size of 2^62", "file-size", "a size of 2^62", edited(at("files.3.bytes", 2**62))),
    Recipe("first bad file", "file-size", "of two bad files the first is told",
           lambda f: (replaced_by("folder", "agent/1.onnx")(f), replaced_by("nothing", "s2/2-2.onnx")(f))),
]  # fmt: skip
