"""Write the manifest of a bundle."""

from __future__ import annotations

from pathlib import Path

from rnp_deploy.bundle.manifest import FileManifest, Manifest
from rnp_deploy.bundle.reading import MANIFEST_FILE
from rnp_deploy.canonical_json import canonical_sha256, dump_json
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
    raw = manifest.model_dump(mode="json")
    raw["manifest_sha256"] = canonical_sha256(raw, without="manifest_sha256")
    (folder / MANIFEST_FILE).write_text(dump_json(raw), encoding="utf-8")
