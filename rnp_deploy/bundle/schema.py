"""The JSON Schemas of a bundle's manifest and of an engine set's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from rnp_deploy.bundle.engine_set import ENGINES_FORMAT, EngineSetManifest
from rnp_deploy.bundle.manifest import Manifest, Sha256
from rnp_deploy.bundle.reading import MANIFEST_FORMAT
from rnp_deploy.bundle.signed_json import SignedFormat
from rnp_deploy.canonical_json import dump_json

__all__ = ["SCHEMA_FILES", "engine_set_schema", "manifest_schema", "write_schemas"]


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``manifest.json``, keys sorted."""
    return _signed_schema(Manifest, MANIFEST_FORMAT, "bundle-manifest", "Manifest of a bundle")


def engine_set_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``engines.json``, keys sorted."""
    return _signed_schema(EngineSetManifest, ENGINES_FORMAT, "engine-set", "Manifest of an engine set")


#: As published in docs/.
SCHEMA_FILES = {
    "bundle-manifest.schema.json": manifest_schema,
    "engine-set.schema.json": engine_set_schema,
}


def write_schemas(folder: str | Path) -> None:
    """Write both into ``folder``, as they lie in docs/."""
    for name, schema in SCHEMA_FILES.items():
        (Path(folder) / name).write_text(dump_json(schema()), encoding="utf-8")


def _signed_schema(model: type[BaseModel], form: SignedFormat, name: str, title: str) -> dict[str, Any]:
    """What a file of this very version looks like; a later minor version may have keys more."""
    schema = model.model_json_schema()
    schema["properties"]["format_version"] = {"const": form.version, "type": "string"}
    schema["properties"][form.hash_key] = TypeAdapter(Sha256).json_schema()
    schema |= {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:rnp-deploy:{name}:{form.version}",
        "title": title,
        "version": form.version,
        "required": sorted([*schema["required"], form.hash_key]),
    }
    in_order: dict[str, Any] = json.loads(json.dumps(schema, sort_keys=True))
    return in_order
