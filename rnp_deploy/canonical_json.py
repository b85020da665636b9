"""The one place where JSON is read and written."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, NoReturn

from rnp_deploy.plain_file import read_plain

__all__ = ["MAX_BYTES", "MAX_DEPTH", "canonical_sha256", "dump_json", "parse_json", "read_json_bytes"]

#: No manifest comes near this; a larger file is refused before it is read.
MAX_BYTES = 64 * 2**20
#: Objects and arrays inside one another, the outermost counted.
MAX_DEPTH = 32


def read_json_bytes(path: Path, *, follow: bool = True) -> bytes:
    """Read a JSON file of bounded size.

    Args:
        path: A plain file.
        follow: Whether it may be a link to one.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger than ``MAX_BYTES``.
    """
    return read_plain(path, MAX_BYTES, follow=follow)


def parse_json(data: bytes) -> dict[str, Any]:
    """Parse a JSON object strictly.

    UTF-8 without a byte order mark, no NaN or Infinity, no key twice, at most ``MAX_DEPTH`` levels; what
    is written without ``.``, ``e`` and ``E`` is an integer of 64 bits with a sign; no half of a surrogate pair.

    Raises:
        ValueError: It is not such an object; the message says why.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            parse_int=_int64,
            parse_float=_finite,
            parse_constant=_refuse,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("the top level is not an object")  # noqa: TRY004 - one type for callers
    _check_depth(value)
    json.dumps(value, ensure_ascii=False).encode(
        "utf-8"
    )  # an escape may have smuggled in half a surrogate pair
    return value


def dump_json(value: Any) -> str:
    """Write a value for people: two spaces a level, keys as given, a newline at the end."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def canonical_sha256(value: dict[str, Any], *, without: str) -> str:
    """Hash the canonical form: keys sorted, no white space, UTF-8, key ``without`` left out."""
    kept = {key: item for key, item in value.items() if key != without}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
    if level:
        raise ValueError(f"nested too deeply: more than {MAX_DEPTH} levels")


def _int64(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:  # int() refuses thousands of digits
        raise ValueError(f"{digits[:20]}{'…' * (len(digits) > 20)} is out of range")
    return int(digits)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is out of range")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value
