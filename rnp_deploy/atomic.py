"""Directories and files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rnp_deploy.errors import InputError, OutputError, OutputExistsError

__all__ = [
    "atomic_directory",
    "atomic_file",
    "check_output",
    "check_output_file",
    "check_parent",
    "write_atomically",
]

_MARKER_WITHIN_BYTES = 256


def check_output(target: Path, *, overwrite: bool, marker: str) -> None:
    """Refuse an output path that would destroy something.

    Args:
        target: Where a directory is to be written.
        overwrite: Whether an earlier output of the same kind may be replaced.
        marker: The file by which an earlier output of this kind is known.

    Raises:
        OutputExistsError: Something is there, and overwriting was not asked for, or it is
            not an earlier output of this kind.
        InputError: The parent directory is missing.
        OutputError: It may not be written to.
    """
    if target.exists() or target.is_symlink():
        if not overwrite:
            raise OutputExistsError(f"{target} exists; pass --overwrite (overwrite=True) or another path")
        empty = target.is_dir() and not any(target.iterdir())
        if target.is_symlink() or not (empty or (target / marker).is_file()):
            raise OutputExistsError(f"{target} holds no {marker}; it is not ours to overwrite")
    check_parent(target)


def check_output_file(target: Path, *, overwrite: bool, marker: bytes) -> None:
    """As :func:`check_output`, for a file.

    Args:
        target: Where a file is to be written.
        overwrite: Whether an earlier output of the same kind may be replaced.
        marker: What the first bytes of an earlier output of this kind hold.

    Raises:
        OutputExistsError, InputError, OutputError: As there.
    """
    if target.is_dir():
        raise OutputExistsError(f"{target} is a directory; pass the path of a file to write")
    if target.exists() or target.is_symlink():
        if not overwrite:
            raise OutputExistsError(f"{target} exists; pass --overwrite (overwrite=True) or another path")
        if target.is_symlink() or not target.is_file() or not _may_replace(target, marker):
            raise OutputExistsError(f"{target} is not a file that this wrote; it is not ours to overwrite")
    check_parent(target)


def _may_replace(file: Path, marker: bytes) -> bool:
    try:
        with file.open("rb") as stream:
            start = stream.read(_MARKER_WITHIN_BYTES)
    except OSError as err:
        raise OutputError(f"{file} cannot be read: {err}") from err
    return not start or marker in start


def check_parent(target: Path) -> None:
    """Refuse a path whose directory is missing, InputError, or may not be written to, OutputError."""
    parent = target.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{parent} does not exist; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} may not be written to; choose another place")


@contextmanager
def atomic_directory(
    target: Path, *, overwrite: bool, marker: str, within: Path | None = None
) -> Iterator[Path]:
    """Yield a directory that becomes ``target`` when the block succeeds.

    On an error it is removed. A killed process leaves a hidden ``.<name>.partial-*``
    directory, and nothing half written under the final name; killed in the instant of
    replacing an earlier output, it leaves that in ``.<name>.old-*/replaced``.

    Args:
        target: The directory to be.
        overwrite: As for :func:`check_output`.
        marker: As there.
        within: Where those directories are made, on the file system of ``target``; None: beside it.

    Raises:
        OutputExistsError, InputError: As :func:`check_output`.
        OutputError: The file system refused.
    """
    target = Path(os.path.abspath(target))  # "." has no name that could be given to another
    check_output(target, overwrite=overwrite, marker=marker)
    parent = target.parent if within is None else within
    partial = parent / f".{target.name}.partial-{secrets.token_hex(4)}"
    try:
        partial.mkdir()
        yield partial
        _sync(*partial.rglob("*"), partial)
        check_output(target, overwrite=overwrite, marker=marker)
        if target.exists():
            old = parent / f".{target.name}.old-{secrets.token_hex(4)}"
            old.mkdir()
            try:
                target.rename(old / "replaced")
                partial.rename(target)
            except BaseException:
                if (old / "replaced").exists():
                    (old / "replaced").rename(target)
                old.rmdir()
                raise
            shutil.rmtree(old)
        else:
            partial.rename(target)
    except BaseException as err:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(err, OSError):
            raise OutputError(f"{target} cannot be written: {err}") from err
        raise


@contextmanager
def atomic_file(target: Path, *, overwrite: bool, marker: bytes) -> Iterator[Path]:
    """Yield the path of a file beside ``target``, to be written, that becomes it when the block succeeds.

    On an error it is removed. A killed process leaves a hidden ``.<name>.partial-*``, and
    under the final name what was there before.

    Raises:
        OutputExistsError, InputError: As :func:`check_output_file`.
        OutputError: The file system refused.
    """
    check_output_file(target, overwrite=overwrite, marker=marker)
    with _replacing(target) as partial:
        yield partial
        check_output_file(target, overwrite=overwrite, marker=marker)


def write_atomically(target: Path, text: str) -> None:
    """Write a UTF-8 file as :func:`atomic_file` does, in the place of whatever file is there.

    Raises:
        InputError: The parent directory is missing.
        OutputError: The file system refused.
    """
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target.parent} does not exist; create it first")
    with _replacing(target) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    target = Path(os.path.abspath(target))
    partial = target.parent / f".{target.name}.partial-{secrets.token_hex(4)}"
    try:
        yield partial
        _sync(partial)
        partial.replace(target)
    except BaseException as err:
        partial.unlink(missing_ok=True)
        if isinstance(err, OSError):
            raise OutputError(f"{target} cannot be written: {err}") from err
        raise


def _sync(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
