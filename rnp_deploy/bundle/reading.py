"""Open a bundle: everything is checked before any graph is parsed."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from rnp_deploy.bundle.manifest import FORMAT_VERSION, FileManifest, Manifest
from rnp_deploy.canonical_json import canonical_sha256, dump_json, parse_json, read_json_bytes
from rnp_deploy.errors import BundleError, FormatVersionError, IntegrityError
from rnp_deploy.hashing import file_sha256

__all__ = ["MANIFEST_FILE", "Bundle", "check_sizes", "open_bundle", "read_manifest"]

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: The directory.
        manifest: Checked.
        graphs: Relative path → bytes of every ``.onnx`` file, as they were hashed.
        on_disk: Relative path → identity of every other file when it was hashed.
    """

    path: Path
    manifest: Manifest
    graphs: dict[str, bytes]
    on_disk: dict[str, tuple[int, ...]]

    def graph(self, path: str) -> bytes:
        """The verified bytes of one graph."""
        return self.graphs[path]

    def check_unchanged(self) -> None:
        """Refuse files that were replaced after they were hashed; raises IntegrityError."""
        for relative, identity in self.on_disk.items():
            if _identity(self.path / relative) != identity:
                raise IntegrityError(
                    f"{self.path / relative} was replaced after loading; load the bundle again"
                )


def open_bundle(path: str | Path) -> Bundle:
    """Read and verify a bundle: manifest, then size and sha256 of every file.

    Raises:
        BundleError: It is missing or its manifest is not a manifest.
        FormatVersionError: Another major version wrote it.
        IntegrityError: A hash or size differs, a file is missing, is or lies behind a
            link, or its path leaves the directory.
    """
    path = Path(path)
    manifest = read_manifest(path)
    graphs, on_disk = {}, {}
    for file in manifest.files:
        identity = _identity(path / file.path)
        data = _verified(path, file)
        if data is None:
            on_disk[file.path] = identity
        else:
            graphs[file.path] = data
    return Bundle(path, manifest, graphs, on_disk)


def _identity(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest alone; raises as :func:`open_bundle`."""
    file = path / MANIFEST_FILE
    try:
        if not path.exists():
            raise BundleError(f"{path} does not exist")
        found = path.is_dir() and file.is_file() and not file.is_symlink()
    except OSError as err:
        raise BundleError(f"{path} cannot be read: {err}") from err
    if not found:
        raise BundleError(f"{path} is not a bundle: there is no {MANIFEST_FILE}; rnp-export writes one")
    try:
        raw = parse_json(read_json_bytes(file))
    except (OSError, ValueError) as err:
        raise BundleError(f"{file} cannot be read: {err}; export the bundle again") from err
    newer = _check_version(file, raw.get("format_version"))
    recorded = raw.pop("manifest_sha256", None)
    if recorded != canonical_sha256(raw, without="manifest_sha256"):
        raise IntegrityError(f"{file}: its values are not those it was written with; copy or export it anew")
    files = raw.get("files")
    for entry in files if isinstance(files, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("path"), str):
            _confined(path, entry["path"])
    try:
        return Manifest.model_validate_json(dump_json(raw), extra="ignore" if newer else "forbid")
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{file}: {where}: {first['msg']}; export the bundle again") from err


def _check_version(file: Path, version: Any) -> bool:
    """Whether a later minor version wrote it, which may have keys we do not know."""
    ours = [int(part) for part in FORMAT_VERSION.split(".")]
    parts = version.split(".") if isinstance(version, str) else []
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise FormatVersionError(f"{file}: format_version is {version!r}; expected {FORMAT_VERSION}")
    major, minor = (int(part) for part in parts)
    if major != ours[0]:
        raise FormatVersionError(
            f"{file}: format {version} is not read by this version, which reads {ours[0]}.x; "
            "use the rnp-deploy that wrote it, or export again"
        )
    return minor > ours[1]


def _confined(root: Path, relative: str) -> Path:
    """The file a manifest path names, inside the bundle and behind no link."""
    pure = PurePosixPath(relative)
    plain = relative == str(pure) and "\\" not in relative and "\0" not in relative and ":" not in relative
    if not relative or not plain or pure.is_absolute() or ".." in pure.parts or relative == ".":
        raise IntegrityError(f"{root / MANIFEST_FILE}: path {relative!r} leaves the bundle; do not use it")
    path = root
    for part in pure.parts:
        path = path / part
        try:
            linked = path.is_symlink()
        except OSError as err:
            raise IntegrityError(f"{path} cannot be read: {err}") from err
        if linked:
            raise IntegrityError(f"{path} is a link; a bundle holds plain files only")
    return path


def check_sizes(root: Path, manifest: Manifest) -> None:
    """Refuse missing files and sizes that differ, without reading a byte; raises IntegrityError."""
    for file in manifest.files:
        _sized(root, file)


def _sized(root: Path, file: FileManifest) -> Path:
    path = _confined(root, file.path)
    try:
        status = path.stat()
    except OSError as err:
        raise IntegrityError(f"{path} is missing; copy or export the bundle anew") from err
    if not stat.S_ISREG(status.st_mode) or status.st_size != file.bytes:
        raise IntegrityError(
            f"{path} has {status.st_size} bytes, the manifest says {file.bytes}; copy or export the bundle anew"
        )
    return path


def _verified(root: Path, file: FileManifest) -> bytes | None:
    """Check one file; return a graph's bytes, and None for what is read from disk later."""
    path = _sized(root, file)
    try:
        data = path.read_bytes() if path.suffix == ".onnx" else None
        digest = file_sha256(path) if data is None else hashlib.sha256(data).hexdigest()
    except OSError as err:
        raise IntegrityError(f"{path} cannot be read: {err}") from err
    if digest != file.sha256:
        raise IntegrityError(f"{path}: its sha256 is not the manifest's; copy or export the bundle anew")
    return data
