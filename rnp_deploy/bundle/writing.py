"""Write the manifests of bundles and engine sets."""

from __future__ import annotations

import shutil
from pathlib import Path

from rnp_deploy.bundle.engine_set import ENGINES_FILE, ENGINES_FORMAT, EngineSetManifest
from rnp_deploy.bundle.manifest import FileManifest, Manifest
from rnp_deploy.bundle.reading import MANIFEST_FILE, MANIFEST_FORMAT, Bundle, read_manifest
from rnp_deploy.bundle.signed_json import signed_text
from rnp_deploy.errors import IntegrityError
from rnp_deploy.hashing import file_sha256

__all__ = ["copy_manifest", "describe_file", "describe_files", "save_engines", "save_manifest"]


def describe_files(folder: Path) -> tuple[FileManifest, ...]:
    """Size and hash of every file below ``folder`` but the manifest, sorted by path."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST_FILE]
    return tuple(describe_file(path, path.relative_to(folder).as_posix()) for path in files)


def describe_file(file: Path, path: str) -> FileManifest:
    """Size and hash of a file, which is listed as ``path``."""
    return FileManifest(path=path, bytes=file.stat().st_size, sha256=file_sha256(file))


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json`` with the hash of its own values."""
    (folder / MANIFEST_FILE).write_text(signed_text(manifest, MANIFEST_FORMAT), encoding="utf-8")


def copy_manifest(bundle: Bundle, folder: Path) -> str:
    """Put a bundle's ``manifest.json`` beside its engines, byte for byte; its sha256.

    Raises:
        IntegrityError: It is not the one that was verified any more.
    """
    shutil.copyfile(bundle.path / MANIFEST_FILE, folder / MANIFEST_FILE)
    if read_manifest(folder) != bundle.manifest:
        raise IntegrityError(
            f"{bundle.path / MANIFEST_FILE} was replaced after loading; load it again", code="changed"
        )
    return file_sha256(folder / MANIFEST_FILE)


def save_engines(engines: EngineSetManifest, folder: Path) -> None:
    """Write ``engines.json`` with the hash of its own values."""
    (folder / ENGINES_FILE).write_text(signed_text(engines, ENGINES_FORMAT), encoding="utf-8")
