"""What a run is at one step, on disk: a killed run goes on from there as if it had not been."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rnp_deploy.errors import InputError, OutputError, OutputExistsError

__all__ = ["STATE_FILE", "begin_run", "end_run", "read_state", "write_state"]

STATE_FILE = "state.pt"
_FORMAT = 1
_HASH = 64


def begin_run(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Make sure that an unfinished run in ``folder`` is gone on with or given up, as was asked for.

    Raises:
        OutputExistsError: There is one, and neither was asked for.
    """
    state = folder / STATE_FILE
    if resume or not state.exists():
        return
    if not overwrite:
        raise OutputExistsError(
            f"{folder} holds an unfinished run of this output; pass --resume to go on with it, "
            "or --overwrite to begin anew"
        )
    state.unlink()


def end_run(folder: Path) -> None:
    """Remove the state of a run that is finished, and its folder unless something else lies there."""
    for name in (STATE_FILE, f"{STATE_FILE}.partial"):
        (folder / name).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def write_state(folder: Path, identity: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Replace the state in ``folder``, at once.

    Args:
        folder: Made if missing.
        identity: What makes it this run and no other: settings, data, network.
        content: Tensors, numbers, strings, and lists and dictionaries of these.

    Raises:
        OutputError: The file system refused.
    """
    partial = folder / f"{STATE_FILE}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            torch.save({"format": _FORMAT, "identity": dict(identity), **content}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(folder / STATE_FILE)
    except OSError as err:
        raise OutputError(f"{folder / STATE_FILE} cannot be written: {err}") from err


def read_state(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state in ``folder``, or None where there is none; no code in it is run.

    Raises:
        InputError: It cannot be read, or is of a run with another identity.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = content["identity"] if content["format"] == _FORMAT else None
    except Exception as err:  # a malformed pickle may raise anything
        raise InputError(
            f"{path} cannot be read: it is damaged or not ours; remove {folder} to begin anew"
        ) from err
    if known is None:
        raise InputError(f"{path} was written by another version; remove {folder} to begin anew")
    names = sorted({*known, *identity})
    other = [
        _difference(name, known.get(name), identity.get(name))
        for name in names
        if known.get(name) != identity.get(name)
    ]
    if other:
        raise InputError(
            f"{folder} holds an unfinished run of another configuration: {'; '.join(other)}; "
            "pass what it was begun with, or --overwrite without --resume to begin anew"
        )
    return content


def _difference(name: str, was: object, now: object) -> str:
    """In words; what is a hash would tell nobody anything."""
    hashed = isinstance(was, str) and isinstance(now, str) and len(was) == len(now) == _HASH
    return f"{name}: another" if hashed else f"{name} was {was!r}, is {now!r}"
