"""Engine sets in a cache: built once, taken by all, never in the way."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from rnp_deploy import Controller
from rnp_deploy.bundle.engine_set import EngineSet
from rnp_deploy.bundle.reading import Bundle, open_bundle
from rnp_deploy.engines import fingerprint, ort_build, sources
from rnp_deploy.engines.sources import CACHE_VARIABLE, open_source
from rnp_deploy.errors import BundleError, EngineError, EngineSetMismatchError

NAME = "in place"


@pytest.fixture(autouse=True)
def no_cache_of_the_user(monkeypatch):
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)


@pytest.fixture
def bundle(exported):
    return exported(NAME).path


@pytest.fixture
def builds(monkeypatch):
    """Where engine sets were built, in order."""
    made, real = [], ort_build.build_engine_set

    def build(source, target, *arguments, **settings):
        made.append(target)
        return real(source, target, *arguments, verify=0, **settings)

    monkeypatch.setattr(ort_build, "build_engine_set", build)
    return made


def entries(cache):
    return sorted(path for path in cache.iterdir() if path.is_dir())


def test_without_a_cache_a_bundle_is_run_as_it_is(bundle, builds):
    source = open_source(bundle)
    assert isinstance(source.graphs, Bundle)
    assert source.plan is None
    assert builds == []


def test_built_once_and_taken_afterwards(bundle, builds, tmp_path):
    cache = tmp_path / "deep" / "cache"
    first, second = open_source(bundle, cache), open_source(bundle, str(cache))
    assert isinstance(first.graphs, EngineSet)
    assert first.plan == second.plan == second.graphs.engines.plan
    assert first.graphs.path == second.graphs.path == builds[0]
    assert len(builds) == 1
    assert entries(cache) == builds
    assert not [path for path in cache.iterdir() if "partial" in path.name or "old" in path.name]


def test_a_cached_set_of_another_bundle_is_built_again(exported, bundle, builds, tmp_path):
    open_source(bundle, tmp_path)
    shutil.rmtree(builds[0])
    ort_build.build_engine_set(open_bundle(exported("chain").path), builds[0])
    assert open_source(bundle, tmp_path).manifest == open_bundle(bundle).manifest


def test_a_cached_set_without_its_manifest_is_built_again(bundle, builds, tmp_path):
    open_source(bundle, tmp_path)
    (builds[0] / "engines.json").unlink()
    assert isinstance(open_source(bundle, tmp_path).graphs, EngineSet)
    assert len(builds) == 2


def test_the_controller_runs_what_is_cached(exported, builds, tmp_path):
    case = exported(NAME)
    images = case.images(3).numpy()
    with Controller.load(case.path) as controller:
        expected = controller.run(images, penalty=0.05)
    with Controller.load(case.path, cache_dir=tmp_path) as controller:
        got = controller.run(images, penalty=0.05)
        assert all(not step.agent_only for step in controller.plan.steps)
    assert (got.options == expected.options).all()
    np.testing.assert_allclose(got.outputs, expected.outputs, atol=1e-5 * np.abs(expected.outputs).max())


def test_the_environment_names_a_cache_and_an_argument_overrides_it(bundle, builds, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "environment"))
    open_source(bundle)
    assert entries(tmp_path / "environment") == builds
    open_source(bundle, tmp_path / "argument")
    assert entries(tmp_path / "argument") == builds[1:]
    assert isinstance(open_source(bundle, "").graphs, Bundle)
    monkeypatch.setenv(CACHE_VARIABLE, "")
    assert isinstance(open_source(bundle).graphs, Bundle)
    assert len(builds) == 2


def test_an_engine_set_is_not_cached(engine_set, builds, tmp_path):
    path = engine_set(NAME)
    builds.clear()
    source = open_source(path, tmp_path / "cache")
    assert source.graphs.path == path
    assert not (tmp_path / "cache").exists()
    assert builds == []


LOAD = """
import logging, sys, numpy
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from rnp_deploy import Controller
with Controller.load(sys.argv[1], threads=1) as controller:
    shape = controller.manifest.inputs[0].shape
    print("taken", [step.agent_only for step in controller.plan.steps].count(True))
    print(controller.run(numpy.ones((1, *shape), numpy.float32)).outputs.tobytes().hex())
"""


def test_processes_that_start_at_once_build_once(bundle, tmp_path):
    environment = os.environ | {CACHE_VARIABLE: str(tmp_path)}
    command = [sys.executable, "-c", LOAD, str(bundle)]

    def start():
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    started = [start() for _ in range(3)]
    told = [process.communicate(timeout=120)[0] for process in started]
    told.append(start().communicate(timeout=120)[0])  # and one that comes later
    assert [process.returncode for process in started] == [0, 0, 0]
    assert sum("building the engine set" in text for text in told) == 1
    assert all("taken 0" in text for text in told)
    assert len({text.splitlines()[-1] for text in told}) == 1
    assert len(entries(tmp_path)) == 1


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def change_deviation(target):
    file = target / "engines.json"
    raw = json.loads(file.read_text()) | {"max_deviation": 0.125}
    file.write_text(json.dumps(raw))


DAMAGES = {
    "weights": lambda target: flip(target / "weights.bin"),
    "weights gone": lambda target: (target / "weights.bin").unlink(),
    "engines.json": change_deviation,
    "engines.json empty": lambda target: (target / "engines.json").write_text(""),
    "manifest": lambda target: flip(target / "manifest.json"),
    "an engine": lambda target: flip(next(target.glob("stages/02/*.onnx"))),
    "an engine gone": lambda target: next(target.glob("stages/02/*.onnx")).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_set_is_built_again(damage, exported, builds, tmp_path, caplog):
    case = exported(NAME)
    target = open_source(case.path, tmp_path).graphs.path
    damage(target)
    with Controller.load(case.path, cache_dir=tmp_path, preload="all") as controller:
        controller.run(case.images(2).numpy())
    assert "a cached engine set is built again" in caplog.text
    assert str(target) in caplog.text
    assert builds == [target, target]


def test_an_unwritable_cache_is_done_without(bundle, builds, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "cache", tmp_path / ("a" * 300)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "rnp_deploy.engines.sources"):
            source = open_source(bundle, cache)
        assert isinstance(source.graphs, Bundle)
        assert source.plan is None
        assert str(bundle) in caplog.text
        assert "run without an engine set" in caplog.text
    assert builds == []


def test_a_build_that_fails_is_done_without(bundle, tmp_path, monkeypatch, caplog):
    def build(*_, **__):
        raise EngineError("ONNX Runtime has a bad day")

    monkeypatch.setattr(ort_build, "build_engine_set", build)
    with caplog.at_level(logging.WARNING, "rnp_deploy.engines.sources"):
        assert isinstance(open_source(bundle, tmp_path).graphs, Bundle)
    assert "ONNX Runtime has a bad day" in caplog.text
    assert entries(tmp_path) == []


def test_a_bundle_that_is_damaged_is_refused_whatever_is_cached(bundle, builds, tmp_path):
    from bundles import bundle_copy

    copied = bundle_copy(bundle, tmp_path / "bundle")
    open_source(copied, tmp_path / "cache")
    flip(copied / "weights.bin")
    with pytest.raises(BundleError):
        open_source(copied, tmp_path / "cache")


@pytest.mark.parametrize("key", ["onnxruntime", "processor", "features"])
def test_another_machine_or_runtime_has_an_entry_of_its_own(key, bundle, builds, tmp_path, monkeypatch):
    here = open_source(bundle, tmp_path).graphs
    elsewhere = {**here.engines.fingerprint, key: "another"}
    for module in (sources, ort_build, fingerprint):
        monkeypatch.setattr(module, "fingerprint", lambda: elsewhere)
    there = open_source(bundle, tmp_path).graphs
    assert there.path != here.path
    assert there.engines.fingerprint[key] == "another"
    assert len(entries(tmp_path)) == 2
    with pytest.raises(EngineSetMismatchError, match=key):
        open_source(here.path)
    monkeypatch.undo()


def test_another_bundle_or_generation_has_an_entry_of_its_own(exported, builds, tmp_path, monkeypatch):
    open_source(exported(NAME).path, tmp_path)
    open_source(exported("separable").path, tmp_path)
    assert len(entries(tmp_path)) == 2
    monkeypatch.setattr(sources, "_CACHE_GENERATION", sources._CACHE_GENERATION + 1)
    open_source(exported(NAME).path, tmp_path)
    assert len(entries(tmp_path)) == len(builds) == 3
