"""JSON files that carry a version and the hash of their own values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from rnp_deploy.canonical_json import canonical_sha256, dump_json, parse_json, read_json_bytes
from rnp_deploy.errors import BundleError, FormatVersionError, IntegrityError
from rnp_deploy.plain_file import FileIsLinkError

__all__ = ["SignedFormat", "read_signed", "signed_text", "validated"]

Model = TypeVar("Model", bound=BaseModel)


class SignedFormat(NamedTuple):
    """A kind of file: its version ``major.minor``, the key of its hash, and what to do about a bad one."""

    version: str
    hash_key: str
    remedy: str


def signed_text(value: BaseModel, form: SignedFormat) -> str:
    """The file's text: the values and their hash."""
    raw = value.model_dump(mode="json")
    raw[form.hash_key] = canonical_sha256(raw, without=form.hash_key)
    return dump_json(raw)


def read_signed(file: Path, form: SignedFormat, *, follow: bool = True) -> tuple[dict[str, Any], bytes]:
    """Read a file, and check its version and the hash of its values.

    Args:
        file: A plain file.
        form: What it is to be.
        follow: Whether it may be a link to one.

    Returns:
        The values, without the hash; and the bytes that they were read from.

    Raises:
        BundleError: It cannot be read, or is no JSON object.
        FormatVersionError: Another major version wrote it.
        IntegrityError: A value differs from what was written, or it is a link.
    """
    try:
        data = read_json_bytes(file, follow=follow)
        raw = parse_json(data)
    except FileIsLinkError as err:
        raise IntegrityError(f"{file} is a link; only plain files are read", code="link") from err
    except FileNotFoundError as err:
        raise BundleError(f"{file} cannot be read: {err}; {form.remedy}", code="missing") from err
    except OSError as err:
        raise BundleError(f"{file} cannot be read: {err}; {form.remedy}", code="unreadable") from err
    except ValueError as err:
        raise BundleError(f"{file} cannot be read: {err}; {form.remedy}", code="json") from err
    _check_version(file, raw.get("format_version"), form)
    recorded = raw.pop(form.hash_key, None)
    if recorded != canonical_sha256(raw, without=form.hash_key):
        raise IntegrityError(
            f"{file}: its values are not those it was written with; copy it anew, or {form.remedy}",
            code="values-hash",
        )
    return raw, data


def validated(model: type[Model], raw: dict[str, Any], file: Path, form: SignedFormat) -> Model:
    """The checked value of what :func:`read_signed` gave; raises BundleError.

    Keys that are not known are let pass where a later minor version wrote the file.
    """
    newer = int(raw["format_version"].split(".")[1]) > int(form.version.split(".")[1])
    try:
        return model.model_validate_json(dump_json(raw), extra="ignore" if newer else "forbid")
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or file.stem
        raise BundleError(f"{file}: {where}: {first['msg']}; {form.remedy}", code="fields") from err


def _check_version(file: Path, version: Any, form: SignedFormat) -> None:
    """Refuse what is no version, and other major versions; raises FormatVersionError."""
    parts = version.split(".") if isinstance(version, str) else []
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise FormatVersionError(f"{file}: format_version is {version!r}; expected {form.version}")
    ours = int(form.version.split(".")[0])
    if int(parts[0]) != ours:
        raise FormatVersionError(
            f"{file}: format {version} is not read by this version, which reads {ours}.x; "
            f"use the rnp-deploy that wrote it, or {form.remedy}"
        )
