"""rnp-inspect: what it tells of a bundle, and what of a damaged one."""

from __future__ import annotations

import shutil

import pytest

from bundles import bundle_copy, edit_manifest
from commands import failure, json_report, success
from rnp_deploy.bundle.reading import read_manifest
from rnp_deploy.tools.inspect import main

GRAPH = "stages/01/full-out1.onnx"


@pytest.fixture
def bundle(exported, tmp_path):
    return bundle_copy(exported("chain").path, tmp_path / "bundle")


def test_the_json_report(bundle):
    manifest = read_manifest(bundle)
    report = json_report(main, [bundle])
    assert report["format_version"] == "1.0"
    assert report["input"] == {"name": "images", "shape": ["N", 3, 16, 16]}
    assert report["output"] == {"name": "outputs", "shape": ["N", 10]}
    assert report["groups"] == 4
    assert report["macs_full"] == manifest.macs
    assert report["macs_cheapest_path"] == manifest.path_macs([1, 1, 1])
    assert report["macs_agent"] == sum(step.macs for step in manifest.agent.steps)
    assert report["files"] == 41
    assert report["bytes"] == sum(p.stat().st_size for p in bundle.rglob("*") if p.is_file()) - (
        (bundle / "manifest.json").stat().st_size
    )
    assert report["checked"] is False
    assert report["verification"]["branches"] == 37
    assert [stage["branches"] for stage in report["stages"]] == [1, 4, 16, 16]
    assert [stage["conv"] for stage in report["stages"]] == [None, "features.2", "features.5", "features.7"]
    stage = report["stages"][2]
    assert stage["widths"] == [4, 8, 12, 16]
    assert stage["input_decisions"] == [0]
    assert stage["graph_bytes"] == sum(path.stat().st_size for path in (bundle / "stages/02").iterdir())
    # 8x8 pixels, 3x3 kernels, a quarter of 16 channels in and out, and all of them
    assert (stage["macs_least"], stage["macs_most"]) == (64 * 9 * 4 * 4, 64 * 9 * 16 * 16)


def test_the_report_for_people(bundle):
    out = success(main, [bundle]).stdout
    for words in (
        "features.5",
        "4 8 12 16",
        "0.009..0.147",
        "41 files",
        "hashes not checked",
        "verified at export",
    ):
        assert words in out
    assert "all hashes are right" in success(main, [bundle, "--check"]).stdout


def test_a_bundle_that_was_not_verified_says_so(bundle):
    edit_manifest(bundle, lambda raw: raw["verification"].update(samples=0, max_branch_deviation=None))
    assert "not verified at export" in success(main, [bundle]).stdout


def test_only_check_reads_the_files(bundle):
    size = (bundle / GRAPH).stat().st_size
    (bundle / GRAPH).write_bytes(b"x" * size)
    assert json_report(main, [bundle])["checked"] is False
    for arguments in ([bundle, "--check"], [bundle, "--check", "--json"]):
        assert GRAPH in failure(main, arguments)


def test_a_file_of_another_size_is_seen_without_check(bundle):
    (bundle / GRAPH).write_bytes(b"changed")
    assert GRAPH in failure(main, [bundle])
    (bundle / GRAPH).unlink()
    assert "is missing" in failure(main, [bundle])


def test_check_of_a_whole_bundle_is_recorded(bundle):
    assert json_report(main, [bundle, "--check"])["checked"] is True


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "does not exist"),
        (lambda path: (path / "manifest.json").unlink(), "not a bundle"),
        (lambda path: (path / "manifest.json").write_text("{"), "cannot be read"),
        (lambda path: edit_manifest(path, lambda raw: raw.update(format_version="2.0")), "format 2.0"),
        (lambda path: edit_manifest(path, lambda raw: raw.update(groups=5), sign=False), "its values"),
        (lambda path: edit_manifest(path, lambda raw: raw.update(macs=0)), "macs"),
    ],
    ids=["missing", "no manifest", "no JSON", "other version", "changed", "no MACs"],
)
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["table", "json"])
def test_what_is_no_bundle(bundle, damage, words, flags):
    damage(bundle)
    line = failure(main, [bundle, *flags])
    assert words in line
    assert str(bundle) in line
