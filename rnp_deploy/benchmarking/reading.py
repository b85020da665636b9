"""Read a report of ``rnp-bench --json``, and the JSON Schema it keeps to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rnp_deploy.benchmarking.report import SCHEMA_VERSION, BenchReport
from rnp_deploy.canonical_json import parse_json, read_json_bytes
from rnp_deploy.errors import InputError

__all__ = ["read_report", "report_schema"]

_WRITE = "rnp-bench --json writes one"


def read_report(path: str | Path) -> BenchReport:
    """Read and check a report.

    Keys that are not known are let pass where a later minor version of the schema wrote it.

    Raises:
        InputError: It is missing, no JSON, no report, or of another major version of the schema.
    """
    path = Path(path)
    try:
        data = read_json_bytes(path)
        raw = parse_json(data)
    except (OSError, ValueError) as err:
        raise InputError(f"{path} is no report that can be read: {err}; {_WRITE}") from err
    version = raw.get("schema_version")
    if not isinstance(version, str) or not re.fullmatch(r"[0-9]{1,5}\.[0-9]{1,5}", version):
        raise InputError(f"{path} is no report: its schema_version is {version!r}; {_WRITE}")
    (major, minor), (our_major, our_minor) = (map(int, text.split(".")) for text in (version, SCHEMA_VERSION))
    if major != our_major:
        raise InputError(
            f"{path} is of schema {version}, and this version reads {SCHEMA_VERSION}: "
            "measure again, or use the rnp-deploy that wrote it"
        )
    try:
        return BenchReport.model_validate_json(data, extra="ignore" if minor > our_minor else "forbid")
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path} is no whole report: {where}: {first['msg']}; {_WRITE}") from err


def report_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of what is written, keys sorted; published as docs/rnp-bench.schema.json."""
    schema = BenchReport.model_json_schema(mode="serialization")
    schema["properties"]["schema_version"] = {"const": SCHEMA_VERSION, "type": "string"}
    schema |= {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:rnp-deploy:rnp-bench-report:{SCHEMA_VERSION}",
        "title": "rnp-bench report",
        "version": SCHEMA_VERSION,
        "required": sorted([*schema["required"], "schema_version"]),
    }
    in_order: dict[str, Any] = _sorted(schema)
    return in_order


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
