"""Bundles that a reader has to refuse, and the code it has to say."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bundle_fields import FIELDS, MISFITS, TENSORS
from damages import BAD_PATHS, bad_files, bad_json, replaced_by
from tiny_packages import Recipe, at, edit, edited, everywhere

__all__ = ["BAD_BUNDLES"]


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


BAD_BUNDLES: list[Recipe] = [
    *_bad_folders(),
    *bad_json(),
    *_bad_paths(),
    *_fields(),
    *bad_files("weights.bin"),
    *bad_files("s2/1-2.onnx"),
    Recipe("size of 2^62", "file-size", "a size of 2^62", edited(at("files.3.bytes", 2**62))),
    Recipe("pipe of no bytes", "file-size", "a pipe where an empty file is listed",
           lambda f: (replaced_by("pipe", "weights.bin")(f), edit(f, "manifest.json", at("files.9.bytes", 0)))),
    Recipe("first bad file", "file-size", "of two bad files the first is told",
           lambda f: (replaced_by("folder", "agent/1.onnx")(f), replaced_by("nothing", "s2/2-2.onnx")(f))),
]  # fmt: skip
