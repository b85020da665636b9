"""Damaged, forged and foreign bundles: each is refused, and before any graph is parsed."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from bundles import bundle_copy, edit_manifest, flip
from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.reading import read_manifest
from rnp_deploy.canonical_json import MAX_BYTES
from rnp_deploy.errors import BundleError, EngineError, FormatVersionError, IntegrityError

GRAPH = "stages/01/full-out1.onnx"


@pytest.fixture
def bundle(exported, tmp_path):
    return bundle_copy(exported("chain").path, tmp_path / "bundle")


@pytest.fixture
def no_graph_is_parsed(monkeypatch):
    import onnxruntime

    def parse(*_, **__):
        pytest.fail("a graph was parsed before everything was checked")

    monkeypatch.setattr(onnxruntime, "InferenceSession", parse)


def assert_refused(folder, kind, words):
    """``kind`` exactly: a FormatVersionError tells a caller something else than its base."""
    with pytest.raises(BundleError) as caught:
        Controller.load(folder, preload="all")
    assert type(caught.value) is kind, caught.value
    assert all(word in str(caught.value) for word in words), caught.value


def truncate(name):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


def append(name):
    def damage(folder):
        with (folder / name).open("ab") as stream:
            stream.write(b"\n")

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


def replace_by_link(name):
    def damage(folder):
        elsewhere = folder.parent / "elsewhere"
        (folder / name).rename(elsewhere)
        (folder / name).symlink_to(elsewhere)

    return damage


def replace_by_folder(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def rewrite(data):
    return lambda folder: (folder / "manifest.json").write_bytes(data)


def substitute(old, new):
    """Change the manifest's text, unsigned."""

    def damage(folder):
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        assert old in text
        (folder / "manifest.json").write_text(text.replace(old, new, 1), encoding="utf-8")

    return damage


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def replace_by_file(folder):
    shutil.rmtree(folder)
    folder.write_text("{}")


FILES = {
    "graph, a bit flipped": (flip(GRAPH), IntegrityError, [GRAPH, "sha256"]),
    "agent step, a bit flipped": (
        flip("agent/step_02.onnx"),
        IntegrityError,
        ["agent/step_02.onnx", "sha256"],
    ),
    "first byte of the weights flipped": (flip("weights.bin", 0), IntegrityError, ["weights.bin", "sha256"]),
    "last byte of the weights flipped": (flip("weights.bin", 1), IntegrityError, ["weights.bin", "sha256"]),
    "graph truncated": (truncate(GRAPH), IntegrityError, [GRAPH, "bytes"]),
    "weights truncated": (truncate("weights.bin"), IntegrityError, ["weights.bin", "bytes"]),
    "graph longer": (append(GRAPH), IntegrityError, [GRAPH, "bytes"]),
    "weights longer": (append("weights.bin"), IntegrityError, ["weights.bin", "bytes"]),
    "graph missing": (remove(GRAPH), IntegrityError, [GRAPH, "is missing"]),
    "weights missing": (remove("weights.bin"), IntegrityError, ["weights.bin", "is missing"]),
    "graph a folder": (replace_by_folder(GRAPH), IntegrityError, [GRAPH]),
    "graph a link": (replace_by_link(GRAPH), IntegrityError, [GRAPH, "is a link"]),
    "weights a link": (replace_by_link("weights.bin"), IntegrityError, ["weights.bin", "is a link"]),
    "folder a link": (replace_by_link("stages"), IntegrityError, ["stages", "is a link"]),
    "inner folder a link": (replace_by_link("stages/02"), IntegrityError, ["stages/02", "is a link"]),
    "manifest a link": (replace_by_link("manifest.json"), IntegrityError, ["manifest.json", "is a link"]),
    "manifest a folder": (replace_by_folder("manifest.json"), BundleError, ["manifest.json", "not a bundle"]),
    "manifest missing": (remove("manifest.json"), BundleError, ["manifest.json", "rnp-export"]),
    "manifest truncated": (
        lambda folder: os.truncate(folder / "manifest.json", 1000),
        BundleError,
        ["manifest.json", "cannot be read"],
    ),
    "empty folder": (empty, BundleError, ["not a bundle", "manifest.json"]),
    "no folder": (replace_by_file, BundleError, ["not a bundle"]),
    "nothing": (shutil.rmtree, BundleError, ["does not exist"]),
}

TEXTS = {
    "a value changed": (substitute('"penalty": 0.1', '"penalty": 0.2'), IntegrityError, ["its values"]),
    "a width changed": (substitute('"bytes": ', '"bytes": 1'), IntegrityError, ["its values"]),
    "signature changed": (substitute('256": "', '256": "0'), IntegrityError, ["its values"]),
    "signature missing": (
        substitute('"manifest_sha256": "', '"signature": "'),
        IntegrityError,
        ["its values"],
    ),
    "key twice": (
        substitute('"groups": 4', '"groups": 4, "groups": 4'),
        BundleError,
        ["cannot be read", "key stands twice"],
    ),
    "NaN": (substitute('"penalty": 0.1', '"penalty": NaN'), BundleError, ["cannot be read", "NaN"]),
    "Infinity": (substitute('"penalty": 0.1', '"penalty": -Infinity'), BundleError, ["-Infinity"]),
    "a number beyond float": (
        substitute('"penalty": 0.1', '"penalty": 1e999'),
        BundleError,
        ["cannot be read"],
    ),
    "half a surrogate pair": (
        substitute('"producer": "', '"producer": "\\ud800'),
        BundleError,
        ["cannot be read"],
    ),
    "not JSON": (rewrite(b"format_version = 1.0"), BundleError, ["cannot be read"]),
    "empty": (rewrite(b""), BundleError, ["cannot be read"]),
    "not UTF-8": (rewrite('{"producer": "é"}'.encode("latin-1")), BundleError, ["cannot be read"]),
    "a list": (rewrite(b"[]"), BundleError, ["not an object"]),
    "an empty object": (rewrite(b"{}"), FormatVersionError, ["format_version is None"]),
    "nested deeply": (rewrite(b'{"x":' + b"[" * 10**6), BundleError, ["nested too deeply"]),
    "nested less": (substitute('"groups"', f'"x": {"[" * 31 + "]" * 31}, "groups"'), IntegrityError, []),
    "a number of many digits": (substitute('"groups": 4', f'"groups": {"4" * 5000}'), BundleError, []),
    "too large to be a manifest": (
        lambda folder: os.truncate(folder / "manifest.json", MAX_BYTES + 1),
        BundleError,
        ["cannot be read", str(MAX_BYTES)],
    ),
}


@pytest.mark.parametrize(("damage", "kind", "words"), FILES.values(), ids=FILES)
def test_damaged_files(bundle, no_graph_is_parsed, damage, kind, words):
    damage(bundle)
    assert_refused(bundle, kind, words)


@pytest.mark.parametrize(("damage", "kind", "words"), TEXTS.values(), ids=TEXTS)
def test_damaged_manifests(bundle, no_graph_is_parsed, damage, kind, words):
    damage(bundle)
    assert_refused(bundle, kind, [*words, "manifest.json"])


def rename_weights(path):
    def change(raw):
        (entry,) = [entry for entry in raw["files"] if entry["path"] == "weights.bin"]
        entry["path"] = path

    return change


@pytest.mark.parametrize(
    "path",
    [
        "../weights.bin", "agent/../../weights.bin", "agent/../weights.bin", "..", "/etc/hostname", "//x/y",
        "agent\\x.bin", "C:/x.bin", "C:x.bin", "./weights.bin", "agent//x.bin", "agent/", ".", "", "a\0b",
    ],
)  # fmt: skip
def test_paths_that_leave_the_bundle_or_are_not_plain(bundle, no_graph_is_parsed, path):
    shutil.copy(bundle / "weights.bin", bundle.parent / "weights.bin")
    edit_manifest(bundle, rename_weights(path))
    assert_refused(bundle, IntegrityError, [str(bundle), repr(path), "leaves the directory"])


def test_of_two_bad_paths_the_first_is_named(bundle):
    replace_by_link("weights.bin")(bundle)
    edit_manifest(bundle, lambda raw: raw["files"].append({"path": "../x", "bytes": 1, "sha256": "0" * 64}))
    assert_refused(bundle, IntegrityError, ["weights.bin is a link"])


def test_a_pipe_is_no_file_and_does_not_hang(bundle):
    (bundle / GRAPH).unlink()
    os.mkfifo(bundle / GRAPH)
    assert_refused(bundle, IntegrityError, [GRAPH, "is no plain file"])


def test_the_directory_may_be_a_link(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle)
    assert open_bundle(tmp_path / "link").manifest == open_bundle(bundle).manifest


def test_a_path_longer_than_any_file_name(bundle, no_graph_is_parsed):
    edit_manifest(bundle, rename_weights("a" * 300))
    assert_refused(bundle, IntegrityError, ["aaa"])


def test_a_branch_cannot_name_a_file_outside(bundle, no_graph_is_parsed):
    def change(raw):
        branch = raw["stages"][0]["branches"][0]
        (entry,) = [entry for entry in raw["files"] if entry["path"] == branch["file"]]
        branch["file"] = entry["path"] = "../outside.onnx"

    shutil.copy(bundle / "stages/00/full.onnx", bundle.parent / "outside.onnx")
    edit_manifest(bundle, change)
    assert_refused(bundle, IntegrityError, ["../outside.onnx", "leaves the directory"])


@pytest.mark.parametrize(
    "version", ["2.0", "0.9", "10.0", "2.0.1", "1", "1.", "1.x", "-1.0", "", "1.²", 1.0, 1, None, ["1.0"]]
)
def test_other_versions(bundle, no_graph_is_parsed, version):
    edit_manifest(bundle, lambda raw: raw.update(format_version=version))
    assert_refused(bundle, FormatVersionError, ["manifest.json", str(version)])


def test_another_major_version_is_told_even_if_nothing_else_can_be_read(bundle):
    (bundle / "manifest.json").write_text('{"format_version": "7.3", "all": "new"}')
    with pytest.raises(FormatVersionError, match=r"7\.3.*reads 1\.x"):
        open_bundle(bundle)


def add_unknown_keys(raw):
    raw["novelty"] = {"a": 1}
    raw["stages"][1]["branches"][0]["novelty"] = 1


def test_a_newer_minor_version_may_have_keys_we_do_not_know(bundle, exported):
    edit_manifest(bundle, lambda raw: (raw.update(format_version="1.7"), add_unknown_keys(raw)))
    manifest = open_bundle(bundle).manifest
    assert manifest.model_copy(update={"format_version": "1.0"}) == read_manifest(exported("chain").path)


def test_a_newer_minor_version_is_checked_all_the_same(bundle, no_graph_is_parsed):
    edit_manifest(bundle, lambda raw: raw.update(format_version="1.7"))
    edit_manifest(bundle, lambda raw: raw.update(groups=3), sign=False)
    assert_refused(bundle, IntegrityError, ["its values"])


def swap_inputs_with_nothing(raw):
    raw["stages"][2]["inputs"][0]["name"] = "from_nowhere"


def made_by_stage_1(raw):
    """The tensor whose channels follow decision 0."""
    return next(tensor for tensor in raw["stages"][1]["outputs"] if tensor["name"] == "features_4_out")


FORGERIES = {
    "unknown key": (lambda raw: raw.update(novelty=1), ["novelty"]),
    "unknown inner key": (
        lambda raw: raw["stages"][1]["branches"][0].update(novelty=1),
        ["stages.1.branches.0.novelty"],
    ),
    "key missing": (lambda raw: raw.pop("agent"), ["agent", "required"]),
    "number as text": (lambda raw: raw.update(groups="4"), ["groups", "integer"]),
    "truth as number": (lambda raw: raw["decisions"][0].update(stage=True), ["decisions.0.stage"]),
    "sha256 of another form": (lambda raw: raw["files"][0].update(sha256="0" * 63), ["files.0.sha256"]),
    "bytes below zero": (lambda raw: raw["files"][0].update(bytes=-1), ["files.0.bytes"]),
    "bytes beyond 64 bits": (lambda raw: raw["files"][0].update(bytes=2**63), [f"{2**63} is out of range"]),
    "shape beyond 31 bits": (
        lambda raw: raw["inputs"][0]["shape"].__setitem__(1, 2**31),
        ["inputs.0.shape.1"],
    ),
    "shape of nothing": (lambda raw: raw["inputs"][0]["shape"].__setitem__(1, 0), ["inputs.0.shape.1"]),
    "more values than can be held": (
        lambda raw: raw["inputs"][0].update(shape=[2**11, 2**10, 2**10]),
        ["inputs.0", "has 2**31 values a sample or more"],
    ),
    "a hundred thousand huge sides": (
        lambda raw: raw["inputs"][0].update(shape=[2**31 - 1] * 10**5),
        ["inputs.0", "has 2**31 values a sample or more"],
    ),
    "a size that would be more than can be held": (
        lambda raw: made_by_stage_1(raw).update(sizes=[2**30]),
        ["stages.1.outputs", "has 2**31 values a sample or more"],
    ),
    "images of another type": (lambda raw: raw["inputs"][0].update(dtype="float16"), ["is not float32"]),
    "images that follow a decision": (
        lambda raw: raw["inputs"][0].update(follows=7),
        ["follows a decision: no end of a network does"],
    ),
    "outputs that follow a decision": (
        lambda raw: raw["outputs"][0].update(follows=0),
        ["follows a decision: no end of a network does"],
    ),
    "features that follow a decision": (
        lambda raw: [
            tensor.update(follows=0, sizes=[4, 8, 12, 16])
            for tensor in raw["stages"][1]["outputs"]
            if tensor["name"] == "features_4_pooled"
        ],
        ["nothing before decision 1 makes its features 'features_4_pooled'"],
    ),
    "a tensor with a name of the agent's": (
        lambda raw: raw["stages"][1]["outputs"].append({"name": "agent/penalty", "shape": [1]}),
        ["'agent/penalty' has a name of the agent's"],
    ),
    "a stage that reads nothing": (lambda raw: raw["stages"][0].update(inputs=[]), ["stages.0.inputs"]),
    "two inputs": (lambda raw: raw["inputs"].append(raw["inputs"][0]), ["inputs"]),
    "network without MACs": (lambda raw: raw.update(macs=0), ["macs"]),
    "two branches for one choice": (
        lambda raw: raw["stages"][2]["branches"].append(dict(raw["stages"][2]["branches"][0])),
        ["stage 2", "16 of 16"],
    ),
    "branch missing": (lambda raw: raw["stages"][2]["branches"].pop(3), ["stage 2 has 15 of 16 branches"]),
    "option beyond the groups": (
        lambda raw: raw["stages"][2]["branches"][0].update(output_option=5),
        ["stage 2 has a branch for options (1,) → 5"],
    ),
    "branch without its input option": (
        lambda raw: raw["stages"][2]["branches"][0].update(input_options=[]),
        ["stage 2 has a branch for options ()"],
    ),
    "branch without its output option": (
        lambda raw: raw["stages"][1]["branches"][0].update(output_option=None),
        ["stage 1 has a branch for options () → None"],
    ),
    "stage input nobody makes": (swap_inputs_with_nothing, ["stage 2 takes 'from_nowhere'"]),
    "stage input in another shape": (
        lambda raw: raw["stages"][2]["inputs"][0].update(shape=[16, 8, 9]),
        ["stage 2 takes 'features_4_out'"],
    ),
    "input without the option it follows": (
        lambda raw: raw["stages"][2].update(input_decisions=[]),
        ["stage 2 takes 'features_4_out' but not the option it follows"],
    ),
    "output made twice": (
        lambda raw: raw["stages"][1]["outputs"][1].update(name="features_1_pooled"),
        ["stage 1 makes 'features_1_pooled' again"],
    ),
    "network output nobody makes": (
        lambda raw: raw["outputs"][0].update(shape=[11]),
        ["no stage makes the output 'outputs'"],
    ),
    "width that does not fit its decision": (
        lambda raw: raw["decisions"][0]["widths"].__setitem__(3, 17),
        ["widths"],
    ),
    "size that does not fit the shape": (
        lambda raw: made_by_stage_1(raw)["sizes"].__setitem__(3, 17),
        ["stage 1 gives 'features_4_out' in sizes that do not fit"],
    ),
    "too few sizes": (
        lambda raw: made_by_stage_1(raw)["sizes"].pop(0),
        ["stage 1 gives 'features_4_out' in sizes that do not fit"],
    ),
    "sizes that fall": (
        lambda raw: made_by_stage_1(raw).update(sizes=[8, 4, 12, 16]),
        ["stage 1 gives 'features_4_out' in sizes that do not fit"],
    ),
    "axis that is not there": (
        lambda raw: made_by_stage_1(raw).update(axis=4),
        ["stage 1 gives 'features_4_out' in sizes that do not fit"],
    ),
    "widths that fall": (
        lambda raw: raw["decisions"][1].update(widths=[4, 12, 8, 16]),
        ["decisions.1", "(4, 12, 8, 16) of features.5 do not rise"],
    ),
    "widths that stay": (
        lambda raw: raw["decisions"][1].update(widths=[4, 8, 8, 16]),
        ["(4, 8, 8, 16) of features.5 do not rise"],
    ),
    "too few widths": (
        lambda raw: raw["decisions"][1].update(widths=[8, 16]),
        ["convolutions say other widths of decision 1"],
    ),
    "a decision too many": (
        lambda raw: raw["decisions"].append(raw["decisions"][0]),
        ["4 decisions need 5 stages and 4 agent steps"],
    ),
    "decision of another stage": (
        lambda raw: raw["decisions"][1].update(stage=3),
        ["decision 1 opens stage 3, not 2"],
    ),
    "stage of another decision": (
        lambda raw: raw["stages"][2].update(decision=0),
        ["stage 2 is opened by decision 0"],
    ),
    "stage that waits for a later decision": (
        lambda raw: raw["stages"][2].update(input_decisions=[0, 2]),
        ["stage 2 has input decisions (0, 2)"],
    ),
    "features nobody makes": (
        lambda raw: raw["agent"]["steps"][1].update(features="features_6_pooled"),
        ["decision 1", "'features_6_pooled'"],
    ),
    "features that are not pooled": (
        lambda raw: raw["agent"]["steps"][1].update(features="features_4_out"),
        ["decision 1", "'features_4_out'"],
    ),
    "file listed twice": (lambda raw: raw["files"].append(raw["files"][0]), ["listed twice"]),
    "file used but not listed": (
        lambda raw: raw["files"].pop(0),
        ["agent/step_00.onnx is used but not listed"],
    ),
    "branch that is no graph": (
        lambda raw: raw["stages"][0]["branches"][0].update(file="weights.bin"),
        ["weights.bin"],
    ),
}


@pytest.mark.parametrize(("change", "words"), FORGERIES.values(), ids=FORGERIES)
def test_signed_manifests_that_make_no_sense(bundle, no_graph_is_parsed, change, words):
    edit_manifest(bundle, change)
    assert_refused(bundle, BundleError, [*words, "manifest.json"])


def test_a_huge_size_is_compared_not_allocated(bundle, no_graph_is_parsed):
    edit_manifest(bundle, lambda raw: raw["files"][0].update(bytes=2**62))
    assert_refused(bundle, IntegrityError, [str(2**62), "agent/step_00.onnx"])


@pytest.mark.parametrize("depth", [150, 300, 700, 940])
def test_a_signed_manifest_nested_deeply(bundle, no_graph_is_parsed, depth):
    value = []
    for _ in range(depth):
        value = [value]
    edit_manifest(bundle, lambda raw: raw.update(novelty=value))
    assert_refused(bundle, BundleError, ["manifest.json"])


def test_a_name_longer_than_any_folder_is_a_bundle_that_does_not_exist(tmp_path):
    with pytest.raises(BundleError):
        open_bundle(tmp_path / ("a" * 300))


def test_an_undamaged_copy_reaches_the_runtime(bundle, monkeypatch):
    """Or the tests above could pass because nothing ever parses a graph."""
    import onnxruntime

    def refuse(*_, **__):
        raise RuntimeError("reached")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(EngineError, match="reached"):
        Controller.load(bundle, preload="all")


def test_files_the_manifest_does_not_list_are_left_alone(bundle):
    (bundle / "notes.txt").write_text("mine")
    assert "notes.txt" not in open_bundle(bundle).graphs


def test_the_bytes_that_were_hashed_are_the_ones_that_are_run(bundle):
    """A graph changed after the check, before its engine is opened, has no effect."""
    opened = open_bundle(bundle)
    before = (bundle / GRAPH).read_bytes()
    (bundle / GRAPH).write_bytes(b"changed")
    assert opened.graph(GRAPH) == before
    assert set(opened.graphs) == {file.path for file in opened.manifest.files if file.path.endswith(".onnx")}


def test_read_manifest_leaves_the_files_unread(bundle):
    (bundle / GRAPH).unlink()
    assert read_manifest(bundle).groups == 4
    with pytest.raises(IntegrityError, match="missing"):
        open_bundle(bundle)


def test_key_order_and_white_space_of_the_manifest_do_not_matter(bundle, exported):
    raw = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(dict(reversed(raw.items())), indent=7))
    assert open_bundle(bundle).manifest == read_manifest(exported("chain").path)
