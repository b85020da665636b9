"""One piece → one plan: what TensorRT of each version is told, and what is refused."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from fake_tensorrt_builder import fake_tensorrt_builder
from rnp_deploy.engines.trt_library import load_tensorrt
from rnp_deploy.engines.trt_network import BuildOptions, compute_capabilities, plan_from_graph
from rnp_deploy.errors import EngineError
from tensorrt_cases import conv_piece, needs_rtx, use_tensorrt

OLD, JETPACK_6, NEW = "8.5.3.1", "10.3.0", "11.4.0"


def told_by(monkeypatch, version, graph, options=BuildOptions(), timings=None, **changes):  # noqa: B008
    told = []
    library = use_tensorrt(monkeypatch, fake_tensorrt_builder(version, told, **changes))
    plan, timing = plan_from_graph(library, graph, options, timings)
    assert plan
    return {**told[0], "timing": timing}


@pytest.mark.parametrize(
    ("version", "dtype", "created", "flags", "streams"),
    [
        (OLD, "float32", ["EXPLICIT_BATCH"], set(), None),
        (OLD, "float16", ["EXPLICIT_BATCH"], {"FP16"}, None),
        (JETPACK_6, "float16", ["STRONGLY_TYPED"], set(), 0),
        (NEW, "bfloat16", ["STRONGLY_TYPED"], set(), 0),
    ],
)
def test_types_are_those_of_the_graph(monkeypatch, version, dtype, created, flags, streams):
    told = told_by(monkeypatch, version, conv_piece(dtype))
    assert (told["created"], told["flags"], told["streams"]) == (created, flags, streams)


def test_a_quantised_piece_sets_the_flag_where_types_do_not(monkeypatch):
    graph = dataclasses.replace(conv_piece("float32"), dtypes=frozenset({"float32", "int8"}))
    assert told_by(monkeypatch, OLD, graph)["flags"] == {"INT8"}
    assert told_by(monkeypatch, JETPACK_6, graph)["flags"] == set()


def test_batches_and_memory(monkeypatch):
    options = BuildOptions(max_batch=32, opt_batch=4, workspace_bytes=2**20)
    told = told_by(monkeypatch, NEW, conv_piece(), options)
    assert told["profile"] == {"x": [(1, 12, 6, 6), (4, 12, 6, 6), (32, 12, 6, 6)]}
    assert told["WORKSPACE"] == 2**20
    assert told["name"] == "piece"  # and no running number, which would be in the plan


@pytest.mark.parametrize("version", [OLD, NEW])
def test_kernels_of_other_libraries_can_be_left_out(monkeypatch, version):
    told = told_by(monkeypatch, version, conv_piece(), BuildOptions(external_tactics=False))
    assert told["tactics"] == ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]
    assert "tactics" not in told_by(monkeypatch, version, conv_piece())


def test_timings_are_joined_and_those_of_another_device_are_left(monkeypatch, caplog):
    head = f"timings of {NEW}: ".encode()
    told = told_by(monkeypatch, NEW, conv_piece(), timings=[b"", head + b"1", head + b"2"])
    assert (told["timings"], told["timing"]) == (head + b"12", head + b"12b")
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        told = told_by(monkeypatch, NEW, conv_piece(), timings=[b"of another", head + b"1"])
    assert told["timings"] == head + b"1"
    assert "another device" in caplog.text
    assert told_by(monkeypatch, NEW, conv_piece())["timing"] is None


@pytest.mark.parametrize(
    ("version", "graph", "changes", "words"),
    [
        (OLD, conv_piece("bfloat16"), {}, "8.5.3.1 has no bfloat16; .*--precision fp16"),
        (NEW, conv_piece(extra="Relu"), {"refused": "Relu"},
         r"stage 7, options 2 \(s/7.onnx\): TensorRT 11.4.0 cannot take node 'the extra one' \(Relu\): no importer for it"),
        (NEW, conv_piece(), {"nothing": True}, "stage 7.*11.4.0 cannot build it: it does not say why"),
        (NEW, conv_piece(), {"half_as": "FLOAT"}, "'x' became .*FLOAT.* and not .*HALF"),
        (NEW, conv_piece(), {"layers": "all Float"}, "of float16 and no layer"),
        (NEW, conv_piece(), {"unloadable": True}, "cannot load what it built"),
        (NEW, conv_piece(), {"half_conv_as": "FLOAT"}, r"convolutions became \['FLOAT'\]"),
        (NEW, dataclasses.replace(conv_piece(), outputs=()), {}, r"has \['y'\] where the graph has \[\]"),
    ],
    ids=["no such type", "operator", "no plan", "type of an edge", "types of layers", "not loaded", "weights", "names"],
)  # fmt: skip
def test_what_is_refused(monkeypatch, version, graph, changes, words):
    with pytest.raises(EngineError, match=words):
        told_by(monkeypatch, version, graph, **changes)


@needs_rtx
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rtx_builds_each_type_and_layout(dtype):
    plan, timing = plan_from_graph(load_tensorrt("rtx"), conv_piece(dtype), BuildOptions(), None)
    assert len(plan) > 1000
    assert timing is None


@needs_rtx
@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("Frobnicate", r"stage 7, options 2 \(s/7.onnx\): TensorRT-RTX .* 'the extra one' \(Frobnicate\)"),
        ("NonZero", "stage 7, options 2"),
    ],
)
def test_rtx_names_what_it_does_not_know(extra, words):
    with pytest.raises(EngineError, match=words):
        plan_from_graph(load_tensorrt("rtx"), conv_piece("float32", extra), BuildOptions(), None)


@needs_rtx
def test_rtx_builds_for_what_it_is_told():
    library = load_tensorrt("rtx")
    assert {"7.5", "8.6", "12.0"} <= set(compute_capabilities(library))
    plans = {
        plan_from_graph(library, conv_piece(), BuildOptions(compute_capabilities=names), None)[0]
        for names in ((), ("8.6",), ("8.6", "12.0"))
    }
    assert len(plans) == 3
