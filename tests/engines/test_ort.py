"""ONNX Runtime sessions: what they compute, what they refuse, and who is named."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest

from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines import ort
from rnp_deploy.engines.ort import engine_from_onnx
from rnp_deploy.errors import EngineError, InputError, MissingRuntimeError

STEM = "stages/00/full.onnx"


@pytest.fixture
def bundle(exported):
    return open_bundle(exported("chain").path)


@pytest.fixture
def images(exported):
    return exported("chain").images(3).numpy()


def doubling() -> bytes:
    """y = x + x, without weights."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 2]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8
    ).SerializeToString()


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_a_graph_gives_every_output_by_name(tmp_path, threads):
    engine = engine_from_onnx(doubling(), tmp_path, "doubling", threads)
    got = engine.run({"x": np.array([[1, 2], [3, 4]], np.float32)})
    assert set(got) == {"y"}
    assert got["y"].tolist() == [[2, 4], [6, 8]]


def test_weights_come_from_the_bundle(exported, bundle, images):
    import torch

    case = exported("chain")
    got = ort.opener(bundle)(STEM).run({"images": images})
    with torch.no_grad():
        expected = torch.relu(case.backbone.features[0](torch.from_numpy(images))).numpy()
    np.testing.assert_allclose(got["features_1_out"], expected, atol=1e-5)
    np.testing.assert_allclose(got["features_1_pooled"], expected.mean(axis=(2, 3)), atol=1e-5)


def test_the_outputs_are_the_callers(bundle, images):
    engine = ort.opener(bundle)(STEM)
    first = engine.run({"images": images})["features_1_pooled"]
    kept = first.copy()
    second = engine.run({"images": images * 2})["features_1_pooled"]
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_threads_of_the_caller_may_share_an_engine(bundle, images):
    engine = ort.opener(bundle)(STEM)
    alone = [engine.run({"images": images * i})["features_1_pooled"] for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: engine.run({"images": images * i})["features_1_pooled"], range(8)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_running_after_close(bundle, images):
    engine = ort.opener(bundle)(STEM)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match=f"{STEM} was run after close"):
        engine.run({"images": images})


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"pictures": np.zeros((1, 3, 16, 16), np.float32)},
        {"images": np.zeros((1, 2, 16, 16), np.float32)},
        {"images": np.zeros((1, 3, 16), np.float32)},
        {"images": np.zeros((1, 3, 16, 16))},
        {"images": "text"},
    ],
    ids=["nothing", "other name", "other channels", "other rank", "other type", "no array"],
)
def test_feeds_that_do_not_fit_name_the_graph(bundle, feeds):
    with pytest.raises(EngineError, match=STEM):
        ort.opener(bundle)(STEM).run(feeds)


@pytest.fixture
def doubler(tmp_path):
    return engine_from_onnx(doubling(), tmp_path, "stages/07/full.onnx", 1)


def pair(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def read_only():
    array = pair(2, 2)
    array.flags.writeable = False
    return array


def test_a_bound_call_reads_and_writes_the_memory_given(doubler):
    x, y = pair(2, 2), pair(2, 2)
    call = doubler.bind({"x": x}, {"y": y})
    assert (y == 1).all(), "binding is no run"
    for value in (3, 5):
        x.fill(value)
        call()
        assert (x == value).all()
        assert (y == 2 * value).all()


def test_a_bound_call_gives_what_a_run_gives_and_only_the_outputs_wanted(bundle, images):
    engine = ort.opener(bundle)(STEM)
    expected = engine.run({"images": images})["features_1_pooled"]
    pooled = np.zeros_like(expected)
    engine.bind({"images": images}, {"features_1_pooled": pooled})()
    assert pooled.tolist() == expected.tolist()


def test_an_output_may_be_bound_onto_the_memory_of_its_input(doubler):
    x = np.array([[1, 2], [3, 4]], np.float32)
    call = doubler.bind({"x": x}, {"y": x})
    call()
    call()
    assert x.tolist() == [[4, 8], [12, 16]]


def test_a_slice_of_memory_is_written_to_and_nothing_beside_it(doubler):
    memory = np.zeros((4, 2), np.float32)
    doubler.bind({"x": pair(2, 2)}, {"y": memory[1:3]})()
    assert memory.tolist() == [[0, 0], [2, 2], [2, 2], [0, 0]]


def test_a_bound_call_keeps_its_memory(doubler):
    x, y = pair(1, 2), pair(1, 2)
    alive = [weakref.ref(x), weakref.ref(y)]
    call = doubler.bind({"x": x}, {"y": y})
    del x, y
    gc.collect()
    call()
    assert alive[1]().tolist() == [[2, 2]]
    del call
    gc.collect()
    assert [kept() for kept in alive] == [None, None]


def test_a_bound_call_works_after_close_and_no_other_can_be_made(doubler):
    y = pair(1, 2)
    call = doubler.bind({"x": pair(1, 2)}, {"y": y})
    doubler.close()
    call()
    assert y.tolist() == [[2, 2]]
    with pytest.raises(EngineError, match=r"stages/07/full\.onnx was bound after close"):
        doubler.bind({"x": pair(1, 2)}, {"y": y})


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ({}, {"y": pair(2, 2)}, ["'x'"]),
        ({"z": pair(2, 2)}, {"y": pair(2, 2)}, ["'z'"]),
        ({"x": pair(2, 2), "z": pair(2, 2)}, {"y": pair(2, 2)}, ["'z'"]),
        ({"x": pair(2, 2)}, {"z": pair(2, 2)}, ["'z'"]),
        ({"x": pair(2, 2, dtype=np.float64)}, {"y": pair(2, 2)}, ["'x'", "tensor(double)", "tensor(float)"]),
        ({"x": pair(2, 2)}, {"y": pair(2, 2, dtype=np.int64)}, ["'y'", "tensor(int64)", "tensor(float)"]),
        ({"x": pair(2, 4)[:, ::2]}, {"y": pair(2, 2)}, ["'x'", "not C-contiguous"]),
        ({"x": pair(2, 2)}, {"y": pair(2, 4)[:, ::2]}, ["'y'", "not C-contiguous"]),
        ({"x": pair(2, 3).T[:2]}, {"y": pair(2, 2)}, ["'x'", "not C-contiguous"]),
        ({"x": pair(2, 2)}, {"y": read_only()}, ["'y'", "read-only"]),
        ({"x": np.array([[None, 1]])}, {"y": pair(2, 2)}, ["numpy arrays"]),
        ({"x": "text"}, {"y": pair(2, 2)}, ["'x'"]),
    ],
    ids=["nothing", "other input", "one more input", "other output", "input type", "output type",
         "strided input", "strided output", "turned input", "read-only output", "objects", "no array"],
)  # fmt: skip
def test_what_cannot_be_bound_names_the_graph_and_the_tensor(doubler, inputs, outputs, words):
    with pytest.raises(EngineError, match=r"stages/07/full\.onnx: ONNX Runtime cannot bind it") as caught:
        doubler.bind(inputs, outputs)
    assert all(word in str(caught.value) for word in words)


def test_an_input_that_is_read_only_will_do(doubler):
    y = pair(2, 2)
    doubler.bind({"x": read_only()}, {"y": y})()
    assert (y == 2).all()


@pytest.mark.parametrize(
    ("x", "y"), [(pair(2, 3), pair(2, 3)), (pair(2, 2), pair(1, 2)), (pair(2, 2), pair(3, 2))], ids=str
)
def test_a_shape_that_does_not_fit_names_the_graph_when_it_is_called(doubler, x, y):
    call = doubler.bind({"x": x}, {"y": y})
    with pytest.raises(EngineError, match=r"stages/07/full\.onnx: ONNX Runtime failed"):
        call()


@pytest.mark.parametrize("graph", [b"", b"garbage", doubling()[:-20]], ids=["empty", "garbage", "truncated"])
def test_a_broken_graph_is_named(tmp_path, graph):
    with pytest.raises(EngineError, match=r"stages/07/full\.onnx: ONNX Runtime .* cannot load it"):
        engine_from_onnx(graph, tmp_path, "stages/07/full.onnx")


@pytest.mark.parametrize("weights", [None, b"", b"\0" * 10], ids=["missing", "empty", "short"])
def test_weights_that_are_not_there_are_the_named_graphs_error(bundle, tmp_path, weights):
    if weights is not None:
        (tmp_path / "weights.bin").write_bytes(weights)
    with pytest.raises(EngineError, match=STEM):
        engine_from_onnx(bundle.graph(STEM), tmp_path, STEM)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_bad_threads(bundle, tmp_path, threads):
    for call in (
        lambda: ort.opener(bundle, threads),
        lambda: engine_from_onnx(doubling(), tmp_path, "doubling", threads),
    ):
        with pytest.raises(InputError, match="at least 1") as caught:
            call()
        assert repr(threads) in str(caught.value)


def test_without_onnxruntime_the_error_names_the_extras(exported, bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for call in (lambda: ort.opener(bundle), lambda: Controller.load(exported("chain").path)):
        with pytest.raises(MissingRuntimeError, match=r"rnp-deploy\[cpu\].*rnp-deploy\[gpu\]"):
            call()


def test_another_pool_size_is_logged_and_gets_the_pool_there_is(tmp_path, caplog):
    engine_from_onnx(doubling(), tmp_path, "first")  # from here on the process has its pool
    with caplog.at_level(logging.WARNING, "rnp_deploy.engines.ort"):
        engine = engine_from_onnx(doubling(), tmp_path, "second", threads=7)
    assert "threads=7" in caplog.text
    assert "pool" in caplog.text
    assert engine.run({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[2, 2]]


def test_no_wish_is_no_other_pool_size(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rnp_deploy.engines.ort"):
        engine_from_onnx(doubling(), tmp_path, "first")
        engine_from_onnx(doubling(), tmp_path, "second")
    assert "threads" not in caplog.text


SIZES = """
import sys, pathlib, numpy, onnxruntime
from rnp_deploy.engines.ort import engine_from_onnx
start, sizes = onnxruntime.set_global_thread_pool_sizes, []
onnxruntime.set_global_thread_pool_sizes = lambda *given: (sizes.append(given[0]), start(*given))
graph = pathlib.Path(sys.argv[1])
for threads in (1, 3, 2, 1):
    engine = engine_from_onnx(graph.read_bytes(), graph.parent, "doubling", threads)
    assert engine.run({"x": numpy.ones((1, 2), numpy.float32)})["y"].tolist() == [[2, 2]]
    print(sizes)
"""


def test_the_first_wish_for_more_than_one_thread_starts_the_one_pool(tmp_path):
    """In a process of its own: ONNX Runtime sizes its pool once."""
    (tmp_path / "doubling.onnx").write_bytes(doubling())
    command = [sys.executable, "-c", SIZES, str(tmp_path / "doubling.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.splitlines() == ["[]", "[3]", "[3]", "[3]"], done.stderr


def test_a_runtime_that_is_too_old_is_told(tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.delattr(onnxruntime, "set_global_thread_pool_sizes")
    with pytest.raises(MissingRuntimeError, match="too old"):
        engine_from_onnx(doubling(), tmp_path, "doubling")
