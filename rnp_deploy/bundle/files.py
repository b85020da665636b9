"""Files of a bundle or engine set: inside its directory, plain, and as they were written."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from rnp_deploy.bundle.manifest import FileManifest
from rnp_deploy.errors import IntegrityError
from rnp_deploy.hashing import stream_sha256
from rnp_deploy.plain_file import FileIsLinkError, NotPlainFileError, open_plain

__all__ = ["check_unchanged", "confined", "file_identity", "sized", "verified"]

_REMEDY = "copy it anew, or make it again"


def file_identity(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced or written to; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def check_unchanged(root: Path, identities: Mapping[str, tuple[int, ...]], kind: str) -> None:
    """Refuse files that have another identity than when they were hashed; raises IntegrityError."""
    for relative, identity in identities.items():
        if file_identity(root / relative) != identity:
            raise IntegrityError(
                f"{root / relative} was replaced after loading; load the {kind} again", code="changed"
            )


def confined(root: Path, relative: str) -> Path:
    """The file that a listed path names, inside ``root`` and behind no link; raises IntegrityError."""
    parts = relative.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or not set("\\:\0").isdisjoint(relative):
        raise IntegrityError(
            f"{root}: the listed path {relative!r} leaves the directory; do not use it", code="path"
        )
    path = root
    for part in parts:
        path = path / part
        status = _status(path)
        if status is not None and stat.S_ISLNK(status.st_mode):
            raise IntegrityError(f"{path} is a link; only plain files are read", code="link")
    return path


def sized(root: Path, file: FileManifest) -> Path:
    """A listed file of the recorded size; raises IntegrityError."""
    path = confined(root, file.path)
    status = _status(path)
    if status is None:
        raise IntegrityError(f"{path} is missing; {_REMEDY}", code="file-missing")
    if not stat.S_ISREG(status.st_mode):
        raise _not_plain(path, file)
    if status.st_size != file.bytes:
        raise _wrong_size(path, status.st_size, file)
    return path


def _not_plain(path: Path, file: FileManifest) -> IntegrityError:
    return IntegrityError(
        f"{path} is no plain file of the {file.bytes} bytes listed; {_REMEDY}", code="file-size"
    )


def _wrong_size(path: Path, size: int, file: FileManifest) -> IntegrityError:
    return IntegrityError(
        f"{path} has {size} bytes, not the {file.bytes} listed; {_REMEDY}", code="file-size"
    )


def _status(path: Path) -> os.stat_result | None:
    """Of the file itself, not of what a link names; None where there is none. Raises IntegrityError."""
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as err:
        raise IntegrityError(f"{path} cannot be read: {err}", code="unreadable") from err


def verified(root: Path, file: FileManifest, *, read: bool) -> bytes:
    """Check the size and hash of a listed file.

    Args:
        root: The directory.
        file: As listed.
        read: Whether to return the bytes that were hashed, or none.

    Raises:
        IntegrityError: It differs, or cannot be read.
    """
    path = sized(root, file)
    try:
        with open_plain(path) as (stream, size):
            if size != file.bytes:
                raise _wrong_size(path, size, file)
            data = stream.read(size) if read else b""
            digest = hashlib.sha256(data) if read else stream_sha256(stream, size)
    except FileIsLinkError as err:
        raise IntegrityError(f"{path} is a link; only plain files are read", code="link") from err
    except NotPlainFileError as err:
        raise _not_plain(path, file) from err
    except FileNotFoundError as err:
        raise IntegrityError(f"{path} is missing; {_REMEDY}", code="file-missing") from err
    except OSError as err:
        raise IntegrityError(f"{path} cannot be read: {err}", code="unreadable") from err
    if digest.hexdigest() != file.sha256:
        raise IntegrityError(f"{path}: its sha256 is not the one listed; {_REMEDY}", code="file-hash")
    return data
