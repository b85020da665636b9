"""Damages of which bundles and engine sets may suffer alike."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from json_texts import BAD_FILES, BAD_VALUES, VERSIONS
from tiny_packages import DROPPED, HASH_KEYS, Recipe, at, edited, rewritten

__all__ = ["BAD_PATHS", "bad_files", "bad_json", "replaced_by"]

#: Paths that leave the directory, or are not written as they should be.
BAD_PATHS = (
    "../weights.bin", "..", ".", "", "/etc/hostname", "/", "//x/y", "a//b", "a/./b", "./a", "a/", "a/.", "a/../b", "a/..",
    "C:x", "C:/x", "a\\b", "a\0b", "\0",
)  # fmt: skip


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
    key = HASH_KEYS[name]

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
