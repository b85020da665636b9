"""Engine sets of TensorRT: whole or not at all, once for each piece, the same bytes every time."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fake_tensorrt_builder import fake_tensorrt_builder
from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.engine_set import open_engine_set, read_engines
from rnp_deploy.engines import trt_build, trt_cache
from rnp_deploy.engines.trt_build import build_outlook, build_tensorrt_set
from rnp_deploy.engines.trt_network import BuildOptions
from rnp_deploy.engines.trt_workers import BuildTask, _Worker, build_all, peak_bytes
from rnp_deploy.errors import (
    DeviceError,
    EngineError,
    InputError,
    IntegrityError,
    MissingRuntimeError,
    OutputError,
    OutputExistsError,
)  # fmt: skip
from rnp_deploy.hashing import file_sha256
from tensorrt_cases import GPU, conv_piece, export_four, needs_rtx, use_tensorrt

FILES = ["agent/step_00.engine", *(f"stages/0{s}/{name}.engine" for s, name in
         [(0, "full"), (1, "full-out1"), (1, "full-out2")])]  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(export_four(tmp_path_factory.mktemp("four") / "bundle"))


@pytest.fixture(scope="module")
def rtx_set(bundle, tmp_path_factory):
    """Built by TensorRT-RTX, two at once, and the cache it filled."""
    folder = tmp_path_factory.mktemp("rtx")
    build_tensorrt_set(bundle, folder / "engines", flavor="rtx", workers=2, cache_dir=folder / "cache")
    return folder


def bytes_of(folder):
    """File → size and hash."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): (p.stat().st_size, file_sha256(p)) for p in files}


def progress_of(*arguments, **settings):
    """What is told while a set is built: task → steps done."""
    told = {}
    build_tensorrt_set(*arguments, **settings, progress=lambda task, done, total: told.update({task: done}))
    return told


@pytest.fixture
def full(monkeypatch):
    """Full TensorRT, faked, on a GPU; gives what it was told."""

    def make(version="10.3.0", device=GPU, **changes):
        told = []
        use_tensorrt(monkeypatch, fake_tensorrt_builder(version, told, **changes))

        def probe():
            if device is None:
                raise DeviceError("there is no NVIDIA driver here")
            return device

        monkeypatch.setattr(trt_build, "cuda_device", probe)
        return told

    return make


@needs_rtx
def test_what_a_set_holds(bundle, rtx_set):
    found = open_engine_set(rtx_set / "engines")
    found.check_engines()
    engines = found.engines
    assert [file.path for file in engines.files] == FILES
    assert (engines.backend, engines.max_batch, engines.max_deviation) == ("tensorrt", 8, None)
    assert engines.fingerprint["compute_capability"] == "8.0 8.6 8.9 12.0+"
    assert engines.build_options["opt_batch"] == "1"
    assert found.manifest == bundle.manifest
    assert set(bytes_of(rtx_set / "engines")) == {*FILES, "engines.json", "manifest.json"}
    assert all(file.bytes > 10_000 for file in engines.files)


@needs_rtx
def test_the_same_bytes_from_nothing_by_one_and_from_the_cache(bundle, rtx_set, tmp_path):
    expected = bytes_of(rtx_set / "engines")
    told = progress_of(bundle, tmp_path / "a", flavor="rtx", workers=1, cache_dir="")
    assert (told["building engines"], told["reading graphs"]) == (4, 4)
    assert bytes_of(tmp_path / "a") == expected
    told = progress_of(bundle, tmp_path / "b", flavor="rtx", cache_dir=rtx_set / "cache")
    assert "building engines" not in told
    assert bytes_of(tmp_path / "b") == expected


@needs_rtx
def test_a_damaged_plan_in_the_cache_is_built_again(bundle, rtx_set, tmp_path, caplog):
    plan = sorted((rtx_set / "cache").rglob("*.engine"))[0]
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    told = progress_of(bundle, tmp_path / "a", flavor="rtx", cache_dir=rtx_set / "cache")
    assert told["building engines"] == 1
    assert "is damaged" in caplog.text
    assert bytes_of(tmp_path / "a") == bytes_of(rtx_set / "engines")


KILLED = """
import sys
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.trt_build import build_tensorrt_set
build_tensorrt_set(open_bundle(sys.argv[1]), sys.argv[2], flavor="rtx", workers=1, cache_dir=sys.argv[3])
"""


@needs_rtx
def test_a_killed_build_is_taken_up(bundle, rtx_set, tmp_path):
    arguments = [
        sys.executable,
        "-c",
        KILLED,
        str(bundle.path),
        str(tmp_path / "engines"),
        str(tmp_path / "cache"),
    ]
    process = subprocess.Popen(arguments)
    while not list((tmp_path / "cache").rglob("*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list((tmp_path / "cache").rglob("*.json")))
    told = progress_of(bundle, tmp_path / "engines", True, flavor="rtx", cache_dir=tmp_path / "cache")
    assert 1 <= kept <= 4
    assert told.get("building engines", 0) <= 4 - kept
    assert bytes_of(tmp_path / "engines") == bytes_of(rtx_set / "engines")


@needs_rtx
def test_what_would_be_built(bundle, rtx_set, tmp_path):
    outlook = build_outlook(bundle, flavor="rtx", workers=2, cache_dir=tmp_path / "cache")
    assert (outlook.pieces, outlook.engines, outlook.cached, outlook.workers) == (4, 4, 0, 2)
    assert outlook.weight_bytes > 8 * 8 * 9 * 4
    assert outlook.peak_bytes > peak_bytes(0)
    assert not (tmp_path / "cache").exists()
    outlook = build_outlook(bundle, flavor="rtx", cache_dir=rtx_set / "cache")
    assert (outlook.cached, outlook.weight_bytes, outlook.peak_bytes) == (4, 0, 0)


@needs_rtx
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="addresses are fixed on Linux alone")
def test_addresses_of_a_worker_are_not_random_and_ours_stay_so():
    with _Worker("rtx") as worker:
        theirs, ours = (
            int(Path(f"/proc/{who}/personality").read_text(encoding="ascii"), 16) & 0x0040000
            for who in (worker._process.pid, "self")
        )
    assert (bool(theirs), bool(ours)) == (True, False)


@needs_rtx
def test_a_process_that_dies_is_told_with_its_piece():
    with _Worker("rtx") as worker:
        worker._process.kill()
        with pytest.raises(EngineError, match=r"stage 7, options 2 \(s/7.onnx\): the process .* died"):
            worker.build(conv_piece(), BuildOptions(), None)


@needs_rtx
def test_an_operator_that_is_not_known_ends_the_build(tmp_path):
    tasks = [
        BuildTask(conv_piece("float32", extra), BuildOptions(), "ab" * 32) for extra in (None, "Frobnicate")
    ]
    cache = trt_cache.PlanCache(tmp_path)
    with pytest.raises(EngineError, match="Frobnicate"):
        list(build_all(tasks, "rtx", cache, None, (1, 2**30)))
    assert cache.holds("ab" * 32)


def test_full_tensorrt_is_timed_on_its_gpu(full, bundle, tmp_path):
    told = full()
    engines = build_tensorrt_set(bundle, tmp_path / "a", flavor="tensorrt", cache_dir=tmp_path / "cache")
    assert len(told) == 4
    assert engines.fingerprint["gpu"] == "Orin"
    assert engines.environment["driver_cuda"] == "12.6"
    head = b"timings of 10.3.0: "
    assert [entry["timings"] for entry in told] == [b"", head + b"b", head + b"bc", head + b"bcd"]
    assert (tmp_path / "a" / "timing.cache").read_bytes() == head + b"bcde"
    assert "timing.cache" in [file.path for file in read_engines(tmp_path / "a").files]
    build_tensorrt_set(bundle, tmp_path / "b", flavor="tensorrt", cache_dir=tmp_path / "cache")
    assert len(told) == 4
    full(device=None)
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        build_tensorrt_set(bundle, tmp_path / "c", flavor="tensorrt", cache_dir=tmp_path / "cache")


def test_another_version_gpu_or_option_is_built_anew(full, bundle, tmp_path):
    cases = [({}, {}), ({"version": "11.4.0"}, {}), ({"device": None}, {}), ({}, {"max_batch": 2})]
    for i, (where, options) in enumerate(cases):
        if "device" in where:
            where = {"device": GPU.__class__("Thor", "11.0", 20, 2**37, "13.0")}
        told = full(**where)
        settings = {"flavor": "tensorrt", "cache_dir": tmp_path / "cache", "options": BuildOptions(**options)}
        build_tensorrt_set(bundle, tmp_path / str(i), **settings)
        assert len(told) == 4, (where, options)


def test_timings_of_another_device_are_a_warning(full, bundle, tmp_path, caplog):
    full()
    build_tensorrt_set(bundle, tmp_path / "a", flavor="tensorrt", cache_dir=tmp_path / "cache")
    timing = next((tmp_path / "cache").glob("timing-*.cache"))
    timing.write_bytes(b"of another GPU")
    for plan in (tmp_path / "cache").rglob("*.json"):
        plan.unlink()
    build_tensorrt_set(bundle, tmp_path / "b", flavor="tensorrt", cache_dir=tmp_path / "cache")
    assert caplog.text.count("another device") == 1
    assert timing.read_bytes() == b"timings of 10.3.0: fghi"


def test_the_same_piece_is_built_once(full, bundle, tmp_path, monkeypatch):
    told = full()
    ordinary = trt_build.piece_graph

    def alike(bundle, arrays, file, *rest):
        graph = ordinary(bundle, arrays, file, *rest)
        if not file.startswith("stages/01"):
            return graph
        return ordinary(bundle, arrays, "stages/01/full-out1.onnx", *rest)

    monkeypatch.setattr(trt_build, "piece_graph", alike)
    engines = build_tensorrt_set(bundle, tmp_path / "a", flavor="tensorrt", cache_dir=tmp_path / "cache")
    assert len(told) == 3
    assert len({piece.file for piece in engines.plan.steps[2].pieces}) == 1
    assert open_engine_set(tmp_path / "a").engines.files == engines.files


def test_what_cannot_be_built(full, bundle, tmp_path, monkeypatch):
    full()
    settings = {"flavor": "tensorrt", "cache_dir": tmp_path / "cache"}
    for options, words in [
        (BuildOptions(max_batch=2, opt_batch=4), "opt_batch 4 is not between 1 and max_batch 2"),
        (BuildOptions(compute_capabilities=("8.6",)), "for TensorRT-RTX alone"),
    ]:
        with pytest.raises(InputError, match=words):
            build_tensorrt_set(bundle, tmp_path / "a", options=options, **settings)
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputExistsError):
        build_tensorrt_set(bundle, tmp_path / "there", **settings)
    full(refused="Conv")
    with pytest.raises(EngineError, match=r"stage 0 \(stages/00/full.onnx\).*\(Conv\)|stage 1, options 2"):
        build_tensorrt_set(bundle, tmp_path / "a", **settings)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingRuntimeError):
        build_tensorrt_set(bundle, tmp_path / "a", **settings)
    assert not (tmp_path / "a").exists()


@needs_rtx
def test_capabilities_that_rtx_does_not_know(bundle, tmp_path):
    options = BuildOptions(compute_capabilities=("8.6", "9.9"))
    with pytest.raises(InputError, match=r"no compute capability 9\.9; it knows 7\.5, 8\.0"):
        build_tensorrt_set(bundle, tmp_path / "a", flavor="rtx", options=options, cache_dir="")


def test_a_full_disk_is_told_before_a_set_is_begun(full, bundle, tmp_path, monkeypatch):
    full()
    usage = trt_build.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(trt_build.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(OutputError, match=r"needs .* MB and .* has 0 MB free"):
        build_tensorrt_set(bundle, tmp_path / "a", flavor="tensorrt", cache_dir=tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_cache_that_does_not_keep_what_is_written(full, bundle, tmp_path, monkeypatch):
    full()
    whole = trt_cache.describe_file
    damaged = {"sha256": "0" * 64}
    monkeypatch.setattr(trt_cache, "describe_file", lambda *a: whole(*a).model_copy(update=damaged))
    with pytest.raises(IntegrityError, match="another --cache-dir"):
        build_tensorrt_set(bundle, tmp_path / "a", flavor="tensorrt", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("verify", [0, 3])
def test_a_set_that_runs_here_is_compared_with_its_bundle(verify, bundle, full, tmp_path, monkeypatch):
    full()
    asked = []
    monkeypatch.setattr(trt_build, "misfits", lambda fingerprint: [])
    monkeypatch.setattr(trt_build, "CudaMemory", lambda: "memory")
    monkeypatch.setattr(trt_build, "opener", lambda built, library, memory: asked.append(memory))
    monkeypatch.setattr(
        trt_build,
        "compare_with_bundle",
        lambda bundle, built, open_engine, samples, *, memory, tolerance: (
            asked.append((samples, tolerance)) or {"decisions": 7, "decisions_equal": 6, "max_deviation": 0.5}
        ),
    )
    engines = build_tensorrt_set(bundle, tmp_path / "set", cache_dir="", verify=verify)
    assert asked == (["memory", (3, 1e-2)] if verify else [])
    assert engines.max_deviation == (0.5 if verify else None)
    assert read_engines(tmp_path / "set") == engines
