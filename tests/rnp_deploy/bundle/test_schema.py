"""The published schemas are the models', and take what is written."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from rnp_deploy.bundle.schema import SCHEMA_FILES, engine_set_schema, manifest_schema, write_schemas

DOCS = Path(__file__).parents[3] / "docs"


def validator(schema):
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", SCHEMA_FILES)
def test_the_published_schemas_are_the_models(name, tmp_path):
    write_schemas(tmp_path)
    assert (DOCS / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8"), (
        "write them again: python -c 'from rnp_deploy.bundle.schema import *; write_schemas(\"docs\")'"
    )
    jsonschema.Draft202012Validator.check_schema(json.loads((DOCS / name).read_text(encoding="utf-8")))


def test_what_is_exported_and_built_keeps_to_them(exported, engine_set):
    for folder, name, schema in (
        (exported("chain").path, "manifest.json", manifest_schema()),
        (engine_set("chain"), "manifest.json", manifest_schema()),
        (engine_set("chain"), "engines.json", engine_set_schema()),
    ):
        validator(schema).validate(json.loads((folder / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": "1.1"}, {"manifest_sha256": "0" * 63}, {"novelty": 1}, {"groups": "4"}, {"groups": 1},
        {"macs": 0}, {"inputs": []}, {"decisions": None}, {"agent_trained": 1}, {"precision": "fp8"},
    ],
    ids=str,
)  # fmt: skip
def test_what_they_refuse(change, exported):
    raw = json.loads((exported("chain").path / "manifest.json").read_text(encoding="utf-8"))
    assert not validator(manifest_schema()).is_valid(raw | change)


def test_the_hash_and_the_version_have_to_be_there(exported):
    raw = json.loads((exported("chain").path / "manifest.json").read_text(encoding="utf-8"))
    for key in ("manifest_sha256", "format_version"):
        assert not validator(manifest_schema()).is_valid({k: v for k, v in raw.items() if k != key})
