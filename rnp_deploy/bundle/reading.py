"""Open a bundle: everything is checked before any graph is parsed."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnp_deploy.bundle.files import check_unchanged, confined, file_identity, sized, verified
from rnp_deploy.bundle.manifest import FORMAT_VERSION, Manifest
from rnp_deploy.bundle.signed_json import SignedFormat, read_signed, validated
from rnp_deploy.errors import BundleError, IntegrityError

__all__ = [
    "MANIFEST_FILE",
    "MANIFEST_FORMAT",
    "Bundle",
    "check_listed_paths",
    "check_plain",
    "check_sizes",
    "open_bundle",
    "read_manifest",
    "read_manifest_bytes",
]

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = SignedFormat(FORMAT_VERSION, "manifest_sha256", "export the bundle again")


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
        check_unchanged(self.path, self.on_disk, "bundle")


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
        identity = file_identity(path / file.path)
        is_graph = file.path.endswith(".onnx")
        data = verified(path, file, read=is_graph)
        if is_graph:
            graphs[file.path] = data
        else:
            on_disk[file.path] = identity
    return Bundle(path, manifest, graphs, on_disk)


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest alone; raises as :func:`open_bundle`."""
    return read_manifest_bytes(path)[0]


def read_manifest_bytes(path: Path) -> tuple[Manifest, bytes]:
    """The checked manifest, and the bytes that it was read from; raises as :func:`open_bundle`."""
    file = path / MANIFEST_FILE
    check_plain(path, MANIFEST_FILE, "not a bundle", "rnp-export writes one")
    raw, data = read_signed(file, MANIFEST_FORMAT, follow=False)
    check_listed_paths(path, raw)
    return validated(Manifest, raw, file, MANIFEST_FORMAT), data


def check_plain(path: Path, name: str, otherwise: str, remedy: str) -> None:
    """Refuse a directory without a plain file ``name``, before that is read.

    Args:
        path: The directory, or a link to it.
        name: Of the file that says what is in it.
        otherwise: What ``path`` is without it.
        remedy: What to do.

    Raises:
        BundleError: There is none, or the file system refuses.
        IntegrityError: It is a link.
    """
    file, mode = path / name, 0
    try:
        path.stat()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            mode = file.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as err:  # a name with a NUL is a ValueError
        raise BundleError(f"{path} does not exist", code="missing") from err
    except OSError as err:
        raise BundleError(f"{path} cannot be read: {err}", code="unreadable") from err
    if stat.S_ISLNK(mode):
        raise IntegrityError(f"{file} is a link; only plain files are read", code="link")
    if not stat.S_ISREG(mode):
        raise BundleError(f"{path} is {otherwise}: there is no {name}; {remedy}", code="missing")


def check_listed_paths(path: Path, raw: Mapping[str, Any]) -> None:
    """Refuse paths under ``files`` that leave the directory or are links; raises IntegrityError."""
    files = raw.get("files")
    for entry in files if isinstance(files, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("path"), str):
            confined(path, entry["path"])


def check_sizes(root: Path, manifest: Manifest) -> None:
    """Refuse missing files and sizes that differ, without reading a byte; raises IntegrityError."""
    for file in manifest.files:
        sized(root, file)
