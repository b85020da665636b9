"""Write the manifest of a bundle."""

from __future__ import annotations

from pathlib import Path

from rnp_deploy.bundle.manifest import FileManifest, Manifest
from rnp_deploy.bundle.reading import MANIFEST_FILE, MANIFEST_FORMAT
from rnp_deploy.bundle.signed_json import signed_text
from rnp_deploy.hashing import file_sha256

__all__ = ["describe_files", "save_manifest"]


def describe_files(folder: Path) -> tuple[FileManifest, ...]:
    """Size and hash of every file below ``folder`` but the manifest, sorted by path."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST_FILE:
            relative = path.relative_to(folder).as_posix()
            files.append(FileManifest(path=relative, bytes=path.stat().st_size, sha256=file_sha256(path)))
    return tuple(files)


def save_manifest(manifest: Manifest, folder: Path) -> None:
    """Write ``manifest.json`` with the hash of its own values."""
    (folder / MANIFEST_FILE).write_text(signed_text(manifest, MANIFEST_FORMAT), encoding="utf-8")
