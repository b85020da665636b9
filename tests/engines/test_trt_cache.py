"""The cache of plans: whole or not there, and a key for all that decides a plan."""

from __future__ import annotations

import dataclasses
import hashlib

import pytest

from rnp_deploy.engines.trt_cache import PlanCache, cache_folder, plan_key
from rnp_deploy.errors import OutputError
from tensorrt_cases import conv_piece

KEY = "ab" + "0" * 62


@pytest.fixture
def cache(tmp_path):
    return PlanCache(tmp_path / "cache")


def files(cache, suffix):
    return list(cache.folder.rglob(f"*{suffix}"))


def test_what_is_stored_is_there_and_copied(cache, tmp_path):
    assert not cache.holds(KEY)
    assert not cache.folder.exists()
    cache.store(KEY, b"a plan")
    assert cache.holds(KEY)
    assert cache.size(KEY) == 6
    copied = cache.copy_to(KEY, tmp_path / "set" / "1.engine", "1.engine")
    assert (tmp_path / "set" / "1.engine").read_bytes() == b"a plan"
    assert (copied.path, copied.bytes, copied.sha256) == (
        "1.engine",
        6,
        hashlib.sha256(b"a plan").hexdigest(),
    )


@pytest.mark.parametrize(
    ("damage", "held"),
    [
        (lambda cache: files(cache, ".engine")[0].write_bytes(b"a pla"), False),
        (lambda cache: files(cache, ".engine")[0].unlink(), False),
        (lambda cache: files(cache, ".json")[0].unlink(), False),
        (lambda cache: files(cache, ".json")[0].write_text("{"), False),
        (lambda cache: files(cache, ".engine")[0].write_bytes(b"b plan"), True),
    ],
    ids=["shorter", "no plan", "no sidecar", "sidecar cut off", "a bit"],
)
def test_damage_is_found_and_mended(cache, tmp_path, damage, held, caplog):
    cache.store(KEY, b"a plan")
    damage(cache)
    assert cache.holds(KEY) == held
    if held:
        assert cache.copy_to(KEY, tmp_path / "1.engine", "1.engine") is None
        assert "is damaged; it is built again" in caplog.text
    cache.store(KEY, b"a plan")
    assert cache.holds(KEY)
    assert cache.copy_to(KEY, tmp_path / "1.engine", "1.engine") is not None


def test_a_full_disk_leaves_nothing_half_written(cache, monkeypatch):
    def full(self, data):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OutputError, match=r"cannot take a file of 3\.0 MB: .*No space left.*--cache-dir"):
        cache.store(KEY, b"\0" * 3_000_000)
    assert [path for path in cache.folder.rglob("*") if path.is_file()] == []


def test_timings_are_of_a_device(cache):
    assert cache.timings("one") == b""
    cache.store_timings("one", b"timed")
    assert (cache.timings("one"), cache.timings("two")) == (b"timed", b"")


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"RNP_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/rnp-deploy"),
        ({}, "/home/me/.cache/rnp-deploy"),
    ],
)
def test_where_it_lies(monkeypatch, variables, folder):
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("RNP_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
        if name in variables:
            monkeypatch.setenv(name, variables[name])
    assert str(cache_folder()) == folder


def test_the_key_is_of_all_that_decides_a_plan():
    graph, settings = conv_piece(), {"version": "1", "options": {"max_batch": 8}}
    key = plan_key(graph, settings)
    linear = dataclasses.replace(graph.inputs[0], channels_last=False)
    others = [
        (dataclasses.replace(graph, onnx=graph.onnx + b"\0"), settings),
        (dataclasses.replace(graph, inputs=(linear,)), settings),
        (graph, {**settings, "version": "2"}),
        (graph, {**settings, "options": {"max_batch": 9}}),
    ]
    assert len({key, *(plan_key(*other) for other in others)}) == 5
    renamed = dataclasses.replace(graph, where="the same piece of another stage")
    assert plan_key(renamed, settings) == key
