"""Damaged, forged and foreign engine sets: each is refused, in words that say what to do."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from bundles import bundle_copy, flip
from rnp_deploy import Controller
from rnp_deploy.bundle import files, signed_json
from rnp_deploy.bundle.engine_set import (
    ENGINES_FILE,
    check_fingerprint,
    is_engine_set,
    open_engine_set,
    read_engines,
)
from rnp_deploy.canonical_json import canonical_sha256
from rnp_deploy.errors import BundleError, EngineSetMismatchError, FormatVersionError, IntegrityError

ENGINE = "stages/01/full-out1.onnx"


@pytest.fixture
def engines(engine_set, tmp_path):
    return bundle_copy(engine_set("chain"), tmp_path / "engines")


def edit(folder, change, *, sign=True):
    """Change the values of engines.json, and sign them again so that only their meaning can be at fault."""
    file = folder / ENGINES_FILE
    raw = json.loads(file.read_text(encoding="utf-8"))
    change(raw)
    if sign:
        raw["engines_sha256"] = canonical_sha256(raw, without="engines_sha256")
    file.write_text(json.dumps(raw), encoding="utf-8")


def edited(change, *, sign=True):
    return lambda folder: edit(folder, change, sign=sign)


def replace_by_link(name):
    def damage(folder):
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return damage


def entry(raw, path):
    return next(file for file in raw["files"] if file["path"] == path)


def renamed(old, new):
    return edited(lambda raw: entry(raw, old).update(path=new))


def another_bundles_manifest(folder):
    """Whole and signed, but not the one the engines were built from."""
    file = folder / "manifest.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["producer"] = "another"
    raw["manifest_sha256"] = canonical_sha256(raw, without="manifest_sha256")
    file.write_text(json.dumps(raw), encoding="utf-8")


def first_piece(raw):
    return raw["plan"]["steps"][0]["pieces"][0]


def tensor(raw, name):
    return next(tensor for tensor in raw["plan"]["tensors"] if tensor["name"] == name)


def in_place_of_nothing(raw):
    raw["plan"]["steps"][0]["in_place"] = {"features_1_out": "nothing"}


REFUSALS = {
    "a value changed": (
        edited(lambda raw: raw.update(max_deviation=0.5), sign=False), IntegrityError, [ENGINES_FILE, "its values"],
    ),
    "signature missing": (
        edited(lambda raw: raw.pop("engines_sha256"), sign=False), IntegrityError, [ENGINES_FILE, "its values"],
    ),
    "another major version": (
        edited(lambda raw: raw.update(format_version="2.0")), FormatVersionError, ["2.0", "rnp-build"],
    ),
    "no version": (edited(lambda raw: raw.pop("format_version")), FormatVersionError, ["None"]),
    "unknown key": (edited(lambda raw: raw.update(novelty=1)), BundleError, ["novelty", "rnp-build"]),
    "unknown inner key": (
        edited(lambda raw: first_piece(raw).update(novelty=1)), BundleError, ["plan.steps.0.pieces.0.novelty"],
    ),
    "key missing": (edited(lambda raw: raw.pop("plan")), BundleError, ["plan", "required", "rnp-build"]),
    "another backend": (edited(lambda raw: raw.update(backend="abacus")), BundleError, ["backend"]),
    "not JSON": (lambda f: (f / ENGINES_FILE).write_text("{"), BundleError, [ENGINES_FILE, "cannot be read"]),
    "manifest missing": (lambda f: (f / "manifest.json").unlink(), BundleError, ["manifest.json"]),
    "manifest changed": (flip("manifest.json"), BundleError, ["manifest.json"]),
    "another bundle's manifest": (
        another_bundles_manifest, IntegrityError, ["manifest.json is of another bundle", "rnp-build"],
    ),
    "first byte of the weights": (flip("weights.bin", 0), IntegrityError, ["weights.bin", "sha256"]),
    "last byte of the weights": (flip("weights.bin", 1), IntegrityError, ["weights.bin", "sha256"]),
    "weights missing": (lambda f: (f / "weights.bin").unlink(), IntegrityError, ["weights.bin is missing"]),
    "weights short": (lambda f: os.truncate(f / "weights.bin", 100), IntegrityError, ["100 bytes"]),
    "weights a link": (replace_by_link("weights.bin"), IntegrityError, ["weights.bin is a link"]),
    "folder a link": (replace_by_link("stages"), IntegrityError, ["stages is a link"]),
    "engines.json a link": (replace_by_link(ENGINES_FILE), IntegrityError, [f"{ENGINES_FILE} is a link"]),
    "weights outside": (renamed("weights.bin", "../weights.bin"), IntegrityError, ["leaves the directory"]),
    "weights absolute": (renamed("weights.bin", "/etc/hostname"), IntegrityError, ["leaves the directory"]),
    "engine outside": (
        edited(lambda raw: (entry(raw, ENGINE).update(path="../x.onnx"),
                            [p.update(file="../x.onnx") for s in raw["plan"]["steps"] for p in s["pieces"]
                             if p["file"] == ENGINE])),
        IntegrityError, ["'../x.onnx' leaves the directory"],
    ),
    "engine not listed": (
        edited(lambda raw: raw["files"].remove(entry(raw, ENGINE))), BundleError, [ENGINE, "not listed"],
    ),
    "file listed twice": (
        edited(lambda raw: raw["files"].append(raw["files"][0])), BundleError, ["listed twice"],
    ),
    "tensor nobody knows": (
        edited(lambda raw: raw["plan"]["tensors"].pop()), BundleError, ["no tensor of the plan"],
    ),
    "in place of nothing": (edited(in_place_of_nothing), BundleError, ["in place of what it does not read"]),
    "tensor that stands twice": (
        edited(lambda raw: raw["plan"]["tensors"].append(raw["plan"]["tensors"][0])), BundleError, ["stands twice"],
    ),
    "prices of half precision": (
        edited(lambda raw: tensor(raw, "agent/penalty").update(dtype="float16")), BundleError,
        ["'agent/penalty' is not of shape () and float32"],
    ),
    "state of another size": (
        edited(lambda raw: tensor(raw, "agent/state.0").update(shape=[1])), BundleError, ["'agent/state.0' is not of"],
    ),
    "options that are no integers": (
        edited(lambda raw: tensor(raw, "agent/option.1").update(dtype="float32")), BundleError,
        ["'agent/option.1' is not of shape () and int32 or int64"],
    ),
    "images of another shape": (
        edited(lambda raw: tensor(raw, "images").update(shape=[3, 8, 9])), BundleError, ["'images' is not of shape"],
    ),
    "a tensor that does not fit its decision": (
        edited(lambda raw: tensor(raw, "features_4_out")["sizes"].pop()), BundleError, ["does not fit the decision"],
    ),
    "a tensor without the option it follows": (
        edited(lambda raw: tensor(raw, "features_4_out").update(follows=2)), BundleError,
        ["step 1 takes or gives 'features_4_out' but not the option it follows"],
    ),
    "a tensor made twice": (
        edited(lambda raw: raw["plan"]["steps"][1]["outputs"].update(again="features_1_out")), BundleError,
        ["step 1 makes 'features_1_out' again"],
    ),
    "a decision that is none": (
        edited(lambda raw: raw["plan"]["steps"][0].update(decides=9)), BundleError, ["step 0 takes decision 9"],
    ),
    "a decision taken twice": (
        edited(lambda raw: raw["plan"]["steps"][1].update(decides=0)), BundleError, ["step 1 takes decision 0"],
    ),
    "a decision without an option": (
        edited(lambda raw: raw["plan"]["steps"][0].update(decides=1)), BundleError, ["step 0 takes decision 1"],
    ),
    "a decision nobody takes": (
        edited(lambda raw: raw["plan"]["steps"][2].update(decides=None)), BundleError,
        ["step 3 needs options before they are chosen"],
    ),
    "an output nobody makes": (
        edited(lambda raw: raw["plan"]["steps"].pop()), BundleError, ["leaves a decision or the output unmade"],
    ),
    "a step too early": (
        edited(lambda raw: raw["plan"]["steps"][0].update(option_decisions=[1])), BundleError,
        ["step 0 needs options before they are chosen"],
    ),
    "a tensor read too early": (
        edited(lambda raw: raw["plan"]["steps"][0]["inputs"].update(x="outputs")), BundleError,
        ["step 0 reads 'outputs' before it is made"],
    ),
    "a piece too few": (
        edited(lambda raw: raw["plan"]["steps"][2]["pieces"].pop()), BundleError, ["step 2 has not one piece"],
    ),
    "a piece of an option there is not": (
        edited(lambda raw: raw["plan"]["steps"][1]["pieces"][0].update(options=[5])), BundleError,
        ["step 1 has not one piece"],
    ),
    "shape of nothing": (
        edited(lambda raw: raw["plan"]["tensors"][-1].update(shape=[0])), BundleError, ["plan.tensors"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "kind", "words"), REFUSALS.values(), ids=REFUSALS)
def test_refused_before_any_engine_is_opened(engines, damage, kind, words, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("an engine was opened"))
    damage(engines)
    for load in (open_engine_set, Controller.load):
        with pytest.raises(BundleError) as caught:
            load(engines)
        assert type(caught.value) is kind, caught.value
        assert all(word in str(caught.value) for word in (*words, str(engines))), caught.value


DAMAGED_ENGINES = {
    "a bit flipped": (flip(ENGINE), [ENGINE, "sha256"]),
    "short": (lambda folder: os.truncate(folder / ENGINE, 10), [ENGINE, "10 bytes"]),
    "missing": (lambda folder: (folder / ENGINE).unlink(), [ENGINE, "is missing"]),
    "a link": (replace_by_link(ENGINE), [ENGINE, "is a link"]),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGED_ENGINES.values(), ids=DAMAGED_ENGINES)
@pytest.mark.parametrize("when", ["before loading", "after loading"])
def test_a_damaged_engine_is_found_when_it_is_opened(damage, words, when, engines, exported):
    case = exported("chain")
    images, ones = case.images(1).numpy(), np.ones((1, 3), int)
    if when == "before loading":
        damage(engines)
        if "sha256" not in words:  # all but the hash is looked at when loading
            with pytest.raises(IntegrityError) as caught:
                Controller.load(engines)
            assert all(word in str(caught.value) for word in words)
            return
        controller = Controller.load(engines)
    else:
        controller = Controller.load(engines)
        damage(engines)
    with controller, pytest.raises(IntegrityError) as caught:
        controller.run(images, options=ones)
    assert all(word in str(caught.value) for word in words)


def test_what_is_loaded_before_the_damage_runs_on(engines, exported):
    images, fours = exported("chain").images(1).numpy(), np.full((1, 3), 4)
    with Controller.load(engines) as controller:
        flip(ENGINE)(engines)
        controller.run(images, options=fours)  # takes other engines


def test_missing(tmp_path):
    with pytest.raises(BundleError, match="rnp-build"):
        open_engine_set(tmp_path)
    for path in (tmp_path / "nothing", tmp_path / ("a" * 300)):
        with pytest.raises(BundleError):
            open_engine_set(path)
        with pytest.raises(BundleError):
            Controller.load(path)
    assert not is_engine_set(tmp_path)


def test_paths_are_looked_at_before_fields(engines):
    """As in a bundle: a file that leaves the directory is told of first."""
    edit(
        engines, lambda raw: (raw.update(novelty=1), entry(raw, "weights.bin").update(path="../weights.bin"))
    )
    with pytest.raises(IntegrityError, match="leaves the directory") as caught:
        open_engine_set(engines)
    assert caught.value.code == "path"


def test_what_is_no_file_makes_no_engine_set(tmp_path):
    (tmp_path / ENGINES_FILE).mkdir()
    assert not is_engine_set(tmp_path)
    with pytest.raises(BundleError, match="not an engine set") as caught:
        open_engine_set(tmp_path)
    assert caught.value.code == "missing"


def test_a_newer_minor_version_may_have_keys_we_do_not_know(engines, engine_set):
    edit(engines, lambda raw: (raw.update(format_version="1.7", novelty=1), first_piece(raw).update(new=1)))
    known = open_engine_set(engines).engines.model_copy(update={"format_version": "1.0"})
    assert known == read_engines(engine_set("chain"))


@pytest.mark.parametrize(
    ("key", "built"),
    [("onnxruntime", "1.2.3"), ("processor", "Abacus 9000"), ("machine", "pdp11"), ("features", "avx9")],
)
def test_built_for_something_else(engines, key, built):
    here = read_engines(engines).fingerprint[key]
    edit(engines, lambda raw: raw["fingerprint"].update({key: built}))
    with pytest.raises(EngineSetMismatchError) as caught:
        Controller.load(engines)
    words = [str(engines), key, repr(here), repr(built), "rnp-build", "load the bundle"]
    assert all(word in str(caught.value) for word in words), caught.value
    others = {"onnxruntime", "processor", "machine"} - {key}
    assert not any(f"{other} is" in str(caught.value) for other in others)
    assert open_engine_set(engines).engines.fingerprint[key] == built  # it may be read all the same


def test_every_difference_is_named(engines):
    found = read_engines(engines)
    with pytest.raises(EngineSetMismatchError, match="'not there'"):
        check_fingerprint(engines, found, {})
    here = {**found.fingerprint, "onnxruntime": "0.1", "machine": "vax"}
    with pytest.raises(
        EngineSetMismatchError, match=r"onnxruntime is '0\.1'.*; machine is 'vax'|machine.*; onnx"
    ):
        check_fingerprint(engines, found, here)
    check_fingerprint(engines, found, {**found.fingerprint, "more": "known"})


def test_an_engine_set_needs_its_bundle_no_longer(engines, exported, engine_set, tmp_path):
    case = exported("chain")
    images = case.images(3).numpy()
    with Controller.load(case.path) as controller:
        expected = controller.run(images)
    moved = shutil.move(engines, tmp_path / "moved")
    with Controller.load(moved, preload="all") as controller:
        got = controller.run(images)
    assert (got.options == expected.options).all()
    np.testing.assert_allclose(got.outputs, expected.outputs, atol=1e-5 * np.abs(expected.outputs).max())
    assert not [name for name in os.listdir(moved) if "bundle" in name]


def test_weights_replaced_after_loading(engines, exported):
    images = exported("chain").images(1).numpy()
    with Controller.load(engines) as controller:
        data = (engines / "weights.bin").read_bytes()
        (engines / "weights.bin").unlink()
        (engines / "weights.bin").write_bytes(data[::-1])
        with pytest.raises(IntegrityError, match=r"weights\.bin was replaced after loading; load"):
            controller.run(images)


def test_engine_bytes_are_read_when_they_are_verified(engines):
    """One read: what was hashed is what is given."""
    opened = open_engine_set(engines)
    assert opened.graph(ENGINE) == (engines / ENGINE).read_bytes()
    assert set(opened.on_disk) == {"weights.bin"}


def test_the_manifest_that_is_hashed_is_the_one_that_was_parsed(engines, monkeypatch):
    """Another valid manifest that lies there only while it is parsed is another bundle's."""
    manifest = engines / "manifest.json"
    right = manifest.read_bytes()
    another_bundles_manifest(engines)
    read = signed_json.read_json_bytes

    def reading(file, **options):
        data = read(file, **options)
        if file == manifest:
            manifest.write_bytes(right)
        return data

    monkeypatch.setattr(signed_json, "read_json_bytes", reading)
    with pytest.raises(IntegrityError, match="another bundle") as caught:
        open_engine_set(engines)
    assert caught.value.code == "other-bundle"


def test_a_link_that_takes_a_files_place_after_it_was_looked_at_is_refused(engines, monkeypatch):
    looked = files.sized

    def swapping(root, file):
        path = looked(root, file)
        if file.path == "weights.bin":
            replace_by_link("weights.bin")(root)
        return path

    monkeypatch.setattr(files, "sized", swapping)
    with pytest.raises(IntegrityError, match=r"weights\.bin is a link") as caught:
        open_engine_set(engines)
    assert caught.value.code == "link"
