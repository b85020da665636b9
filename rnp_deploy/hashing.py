"""Hashes of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["file_sha256", "stream_sha256"]

_CHUNK_BYTES = 2**20


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, read in chunks; raises OSError."""
    with path.open("rb") as stream:
        return stream_sha256(stream).hexdigest()


def stream_sha256(stream: BinaryIO, most: int | None = None) -> _Hash:
    """The sha256 of what is left of a stream, or of its next ``most`` bytes, read in chunks; raises OSError."""
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES if most is None else min(_CHUNK_BYTES, most)):
        digest.update(chunk)
        most = None if most is None else most - len(chunk)
    return digest
