"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rnp_deploy.errors import InputError, OutputError, OutputExistsError

__all__ = ["atomic_directory", "check_output"]


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
    parent = target.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{parent} does not exist; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} may not be written to; choose another place")


@contextmanager
def atomic_directory(target: Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """Yield a directory beside ``target`` that becomes it when the block succeeds.

    On an error it is removed. A killed process leaves a hidden ``.<name>.partial-*``
    directory, and nothing half written under the final name; killed in the instant of
    replacing an earlier output, it leaves that in ``.<name>.old-*/replaced``.

    Raises:
        OutputExistsError, InputError: As :func:`check_output`.
        OutputError: The file system refused.
    """
    target = Path(os.path.abspath(target))  # "." has no name that could be given to another
    check_output(target, overwrite=overwrite, marker=marker)
    parent = target.parent
    partial = parent / f".{target.name}.partial-{secrets.token_hex(4)}"
    try:
        partial.mkdir()
        yield partial
        _sync(partial)
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


def _sync(directory: Path) -> None:
    for path in (*directory.rglob("*"), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
