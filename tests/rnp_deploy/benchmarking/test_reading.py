"""Reports are read strictly, and the published schema is what the code says."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from rnp_deploy.benchmarking.reading import read_report, report_schema
from rnp_deploy.benchmarking.report import SCHEMA_VERSION
from rnp_deploy.canonical_json import dump_json
from rnp_deploy.errors import InputError
from timed_reports import timed_report

PUBLISHED = Path(__file__).parents[3] / "docs" / "rnp-bench.schema.json"


@pytest.fixture
def report():
    return timed_report({"dense": np.linspace(4, 5, 200), "controller": np.linspace(2, 3, 200)})


@pytest.fixture
def file(tmp_path):
    """Writes a text or an object; gives the path."""

    def write(content):
        path = tmp_path / "report.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_a_report_comes_back_as_it_was_written(report, file):
    assert read_report(file(dump_json(report.model_dump(mode="json")))) == report
    assert read_report(str(file(report.model_dump_json()))) == report


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": "2.0"}, "is of schema 2.0, and this version reads 1.0"),
        ({"schema_version": "0.9"}, "is of schema 0.9"),
        ({"schema_version": None}, "no report: its schema_version is None"),
        ({"schema_version": 1.0}, "no report"),
        ({"schema_version": "1"}, "no report"),
        ({"schema_version": "1.x"}, "no report"),
        ({"further": 1}, "no whole report: further: Extra inputs"),
        ({"created": 3}, "no whole report: created: "),
        ({"data": {"name": "x"}}, "no whole report: data.images: Field required"),
        ({"contenders": [{}]}, "contenders.0.name"),
    ],
)
def test_what_is_no_report(report, file, change, words):
    path = file(report.model_dump(mode="json") | change)
    with pytest.raises(InputError) as caught:
        read_report(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no report that can be read"),
        ("not JSON", "no report that can be read"),
        ("[1]", "the top level is not an object"),
        ('{"schema_version": "1.0", "created": NaN}', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "a key stands twice"),
        ("{}", "its schema_version is None"),
    ],
)
def test_what_is_no_json(file, text, words):
    with pytest.raises(InputError, match=words):
        read_report(file(text))


def test_missing_files_and_folders(tmp_path):
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(InputError, match=r"no report that can be read: .*; rnp-bench --json writes one"):
            read_report(path)


def test_infinite_numbers_are_refused(report, file):
    text = report.model_dump_json().replace('"duration_s":3.0', '"duration_s":1e999')
    with pytest.raises(InputError, match="1e999"):
        read_report(file(text))


def test_keys_of_a_later_minor_version_are_let_pass_and_its_values_checked(report, file):
    raw = report.model_dump(mode="json") | {"schema_version": "1.7", "further": [1]}
    raw["settings"]["more"] = True
    assert read_report(file(raw)) == report.model_copy(update={"schema_version": "1.7"})
    del raw["created"]
    with pytest.raises(InputError, match="created"):
        read_report(file(raw))


def test_the_published_schema_is_the_code_s():
    assert PUBLISHED.read_text(encoding="utf-8") == dump_json(report_schema()), (
        "write it again: dump_json(report_schema()) into docs/rnp-bench.schema.json"
    )


def test_the_schema_names_itself():
    schema = report_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"].endswith(f":{SCHEMA_VERSION}")
    assert (schema["title"], schema["version"]) == ("rnp-bench report", SCHEMA_VERSION)
    assert list(schema["properties"]) == sorted(schema["properties"])
    assert list(schema["$defs"]["Latency"]) == sorted(schema["$defs"]["Latency"])


def test_the_schema_takes_reports_and_nothing_else(report):
    validator = jsonschema.Draft202012Validator(report_schema())
    raw = report.model_dump(mode="json")
    validator.validate(raw)
    unversioned = {key: value for key, value in raw.items() if key != "schema_version"}
    for bad in (raw | {"further": 1}, raw | {"schema_version": "2.0"}, unversioned, raw | {"contenders": 1}):
        assert not validator.is_valid(bad)
