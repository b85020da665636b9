"""An engine set, format 1.0: a bundle compiled for one device and backend."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rnp_deploy.bundle.fields import Count, Finite, Frozen, Size
from rnp_deploy.bundle.files import check_unchanged, file_identity, sized, verified
from rnp_deploy.bundle.manifest import FileManifest, Manifest, Sha256
from rnp_deploy.bundle.reading import MANIFEST_FILE, check_listed_paths, check_plain, read_manifest_bytes
from rnp_deploy.bundle.signed_json import SignedFormat, read_signed, validated
from rnp_deploy.errors import BundleError, EngineSetMismatchError, InputError, IntegrityError
from rnp_deploy.plan import Plan, check_plan

__all__ = [
    "ENGINES_FILE",
    "ENGINES_FORMAT",
    "LATENCY_FILE",
    "EngineSet",
    "EngineSetManifest",
    "check_fingerprint",
    "check_not_an_engine_set",
    "is_engine_set",
    "open_engine_set",
    "read_engines",
]

ENGINES_FILE = "engines.json"
#: Written beside it by ``rnp-bench --calibrate``; it may be missing.
LATENCY_FILE = "latency.json"
ENGINES_FORMAT = SignedFormat("1.0", "engines_sha256", "build the engine set again with rnp-build")


class EngineSetManifest(Frozen):
    """``engines.json``: what the engines are, and where they run.

    Attributes:
        backend: What runs the engines.
        bundle_sha256: Of the bundle's ``manifest.json``, which lies beside as it was.
        fingerprint: What has to be the same where the engines run: name → value.
        plan: What is run, step by step; its pieces' files are engines.
        files: Of the engine set, but for the two manifests and the latency curve.
        decisions, decisions_equal: Taken by the agent on random images when the set was
            verified, and how many of them were the bundle's.
        max_deviation: Of the outputs from the bundle's: largest absolute error ÷ largest
            absolute output; None where it was not verified.
        max_batch: The largest that an engine takes; None: any.
        build_options: What the engines were built with, name → value.
        environment: Where they were built, name → value; never compared.
    """

    format_version: str
    producer: str
    backend: Literal["onnxruntime", "tensorrt"]
    bundle_sha256: Sha256
    fingerprint: dict[str, str]
    plan: Plan
    files: tuple[FileManifest, ...]
    decisions: Count = 0
    decisions_equal: Count = 0
    max_deviation: Finite | None = None
    max_batch: Size | None = None
    build_options: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _files_are_listed(self) -> EngineSetManifest:
        listed = {file.path for file in self.files}
        used = {piece.file for step in self.plan.steps for piece in step.pieces}
        missing = sorted(used - listed)
        if missing:
            raise ValueError(f"{missing[0]} is used but not listed under files")
        if len(listed) != len(self.files):
            raise ValueError("a file is listed twice")
        return self


@dataclass(frozen=True)
class EngineSet:
    """An engine set whose manifests and shared files are verified; engines are as they are opened.

    Attributes:
        path: The directory.
        manifest: Of the bundle.
        engines: Of the engine set.
        on_disk: Shared file → its identity when it was hashed.
    """

    path: Path
    manifest: Manifest
    engines: EngineSetManifest
    on_disk: Mapping[str, tuple[int, ...]]

    def graph(self, path: str) -> bytes:
        """The bytes of one engine, verified as they are read; raises IntegrityError."""
        file = next(file for file in self.engines.files if file.path == path)
        return verified(self.path, file, read=True)

    def check_engines(self) -> None:
        """Hash every engine; shared files were hashed when the set was opened. Raises IntegrityError."""
        for file in self.engines.files:
            if file.path not in self.on_disk:
                verified(self.path, file, read=False)

    def check_unchanged(self) -> None:
        """Refuse shared files that were replaced after they were hashed; raises IntegrityError."""
        check_unchanged(self.path, self.on_disk, "engine set")


def is_engine_set(path: Path) -> bool:
    """Whether a directory claims to be one."""
    try:
        return (path / ENGINES_FILE).is_file()  # or a link to one, which is refused when it is read
    except OSError:  # a name too long, a folder that may not be entered
        return False


def check_not_an_engine_set(path: Path) -> None:
    """Refuse an engine set where its bundle is needed, whose graphs it does not hold; raises InputError."""
    if is_engine_set(path):
        raise InputError(f"{path} is an engine set; pass the bundle that it was built from")


def read_engines(path: Path) -> EngineSetManifest:
    """Read and check ``engines.json`` alone; raises as :func:`open_engine_set`."""
    file = path / ENGINES_FILE
    check_plain(path, ENGINES_FILE, "not an engine set", "rnp-build writes one")
    raw, _ = read_signed(file, ENGINES_FORMAT, follow=False)
    check_listed_paths(path, raw)
    return validated(EngineSetManifest, raw, file, ENGINES_FORMAT)


def open_engine_set(path: str | Path) -> EngineSet:
    """Read an engine set: both manifests, and the hash of what its engines share.

    Raises:
        BundleError: It is missing, or not one.
        FormatVersionError: Another major version wrote it.
        IntegrityError: A value, hash or size differs, a file is missing or a link, or the
            manifest is of another bundle.
    """
    path = Path(path)
    engines = read_engines(path)
    manifest, manifest_bytes = read_manifest_bytes(path)
    if hashlib.sha256(manifest_bytes).hexdigest() != engines.bundle_sha256:
        raise IntegrityError(
            f"{path / MANIFEST_FILE} is of another bundle; {ENGINES_FORMAT.remedy}", code="other-bundle"
        )
    try:
        check_plan(engines.plan, manifest)
    except ValueError as err:
        raise BundleError(
            f"{path / ENGINES_FILE}: plan: {err}; {ENGINES_FORMAT.remedy}", code="plan"
        ) from err
    pieces = {piece.file for step in engines.plan.steps for piece in step.pieces}
    on_disk = {}
    for file in engines.files:
        if file.path in pieces:
            sized(path, file)  # hashed when it is opened
        else:
            on_disk[file.path] = file_identity(path / file.path)
            verified(path, file, read=False)
    return EngineSet(path, manifest, engines, on_disk)


def check_fingerprint(path: Path, engines: EngineSetManifest, here: Mapping[str, str]) -> None:
    """Refuse an engine set that was built for another machine or runtime.

    Raises:
        EngineSetMismatchError: Naming what differs.
    """
    differing = [
        f"{name} is {here.get(name, 'not there')!r} and was {built!r}"
        for name, built in engines.fingerprint.items()
        if here.get(name) != built
    ]
    if differing:
        raise EngineSetMismatchError(
            f"{path} was built for something else: {'; '.join(differing)}; "
            "build it here, rnp-build BUNDLE -o ENGINES, or load the bundle, which runs anywhere"
        )
