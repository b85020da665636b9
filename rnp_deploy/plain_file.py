"""Files that are opened as what they are: plain, and behind no link of their own."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["FileIsLinkError", "NotPlainFileError", "open_plain", "read_plain"]

# A link that took the file's place is not followed, and a pipe is not waited for; Windows has neither flag.
_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


class FileIsLinkError(OSError):
    """It is a link."""


class NotPlainFileError(OSError):
    """It is a directory, a pipe or a device."""


@contextmanager
def open_plain(path: Path, *, follow: bool = False) -> Iterator[tuple[BinaryIO, int]]:
    """Open a plain file for reading; yields it and its size as it was opened.

    Args:
        path: The file.
        follow: Whether it may be a link to one.

    Raises:
        FileIsLinkError: It is a link, and may be none.
        NotPlainFileError: It is no plain file.
        OSError: It cannot be opened.
    """
    flags = _FLAGS & ~getattr(os, "O_NOFOLLOW", 0) if follow else _FLAGS
    try:
        descriptor = os.open(path, flags)
    except OSError as err:
        if not follow and err.errno in (errno.ELOOP, errno.EMLINK) and path.is_symlink():
            raise FileIsLinkError(err.errno, "it is a link; only plain files are read", str(path)) from err
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NotPlainFileError(errno.EINVAL, "it is no plain file", str(path))
    with os.fdopen(descriptor, "rb") as stream:
        yield stream, status.st_size


def read_plain(path: Path, limit: int, *, follow: bool = False) -> bytes:
    """All bytes of a plain file.

    Args:
        path: The file.
        limit: Bytes that are read at most.
        follow: Whether it may be a link to one.

    Raises:
        OSError: As :func:`open_plain`, or it cannot be read.
        ValueError: It is larger.
    """
    with open_plain(path, follow=follow) as (stream, size):
        data = b"" if size > limit else stream.read(limit + 1)
    if max(size, len(data)) > limit:
        raise ValueError(f"{max(size, len(data))} bytes; at most {limit} are read")
    return data
