"""ONNX graphs as torch functions: what is folded, shared, dropped and refused."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from one_node import torch_graph, torch_outputs
from onnx_graphs import run_plain
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.torch_graph import TorchGraph, Weights
from rnp_deploy.engines.torch_layers import Node
from rnp_deploy.engines.torch_ops import OPS, Op
from rnp_deploy.errors import EngineError

CPU = torch.device("cpu")
WHERE = "stages/07/full.onnx"


def graph_of(nodes, inputs, outputs, constants=None, opset=20, domain=""):
    """``inputs`` and ``outputs``: name → (element type, shape); ``constants``: name → array or TensorProto."""
    tensors = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in (constants or {}).items()
    ]
    ends = [
        [helper.make_tensor_value_info(name, *end) for name, end in each.items()]
        for each in (inputs, outputs)
    ]
    made = [helper.make_node(kind, reads.split(), writes.split(), name=f"{kind} of {writes}", domain=domain, **given)
            for kind, reads, writes, given in nodes]  # fmt: skip
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(
        helper.make_graph(made, "g", *ends, tensors), opset_imports=opsets, ir_version=10
    )


FLOATS = (1, ["N", 4])


@pytest.fixture
def calls(monkeypatch):
    """Kinds of the nodes that were run, in order."""
    made = []

    def counted(kind, op):
        def make(node: Node):
            run = op.make(node)
            return lambda *inputs: (made.append(kind), run(*inputs))[1]

        return op._replace(make=make)

    for kind in ("Slice", "DequantizeLinear", "Transpose", "Mul", "MatMul", "Shape", "Constant"):
        monkeypatch.setitem(OPS, kind, counted(kind, OPS[kind]))
    return made


def test_what_depends_on_constants_alone_is_computed_at_load(calls):
    """A cut weight, a quantised weight, and a chain of both."""
    model = graph_of(
        [
            ("Constant", "", "ends", {"value_ints": [2]}),
            ("DequantizeLinear", "steps scale", "whole", {}),
            ("Slice", "whole starts ends axes", "cut", {}),
            ("Transpose", "cut", "turned", {}),
            ("MatMul", "x turned", "y", {}),
        ],
        {"x": FLOATS}, {"y": (1, ["N", 2])},
        {"steps": np.arange(16, dtype=np.int8).reshape(4, 4), "scale": np.float32(0.5), "starts": [0], "axes": [0]},
    )  # fmt: skip
    graph = torch_graph(model)
    assert calls == ["Constant", "DequantizeLinear", "Slice", "Transpose"]
    calls.clear()
    x = np.ones((3, 4), np.float32)
    with torch.inference_mode():
        (y,) = graph([torch.from_numpy(x)])
    assert calls == ["MatMul"]
    assert np.array_equal(y.numpy(), run_plain(model, {"x": x})["y"])
    assert graph.own_bytes == 2 * 4 * 4, "what was only folded is kept"


def test_a_value_is_dropped_after_its_last_use(monkeypatch):
    alive, counts = [], []

    def make(node: Node):
        def run(x):
            counts.append(sum(ref() is not None for ref in alive))
            made = x + 1
            alive.append(weakref.ref(made))
            return made

        return run

    monkeypatch.setitem(OPS, "Neg", Op(make))
    chain = [("Neg", f"v{i}", f"v{i + 1}", {}) for i in range(5)]
    graph = torch_graph(graph_of(chain, {"v0": FLOATS}, {"v5": FLOATS, "v2": FLOATS}))
    made = graph([torch.zeros(1, 4)])
    assert [tensor[0, 0].item() for tensor in made] == [5, 2]
    # At each node the one that is read, and v2, which is a result.
    assert counts == [0, 1, 1, 2, 2]


def test_weights_of_all_branches_are_one_memory(exported):
    bundle = open_bundle(exported("chain").path)
    weights = Weights(bundle.path, CPU)
    graphs = {path: TorchGraph(bundle.graph(path), weights, CPU, path) for path in bundle.graphs}
    assert weights.nbytes == (bundle.path / "weights.bin").stat().st_size
    stages = [path for path in graphs if path.startswith("stages")]
    whole = [path for path in stages if b"Slice" not in bundle.graph(path)]
    assert 0 < len(whole) < len(stages)
    for path in stages:  # a cut of axis 0 is a view; another one is a copy, smaller than its weight
        assert (graphs[path].own_bytes == 0) == (path in whole), path
        assert graphs[path].own_bytes < weights.nbytes / 2


def test_weights_are_read_when_they_are_needed(tmp_path):
    weights = Weights(tmp_path, CPU)
    TorchGraph(
        graph_of([("Neg", "x", "y", {})], {"x": FLOATS}, {"y": FLOATS}).SerializeToString(), weights, CPU, ""
    )
    assert weights.nbytes == 0


@pytest.mark.parametrize("name", ["chain", "bottleneck residual", "separable"])
def test_no_graph_reads_values_of_the_device(exported, name):
    """A CUDA graph cannot be captured of one that does; the meta device has shapes and no values."""
    bundle, meta = open_bundle(exported(name).path), torch.device("meta")
    weights = Weights(bundle.path, meta)
    for path in bundle.graphs:
        graph = TorchGraph(bundle.graph(path), weights, meta, path)
        feeds = [
            torch.empty([size or 3 for size in edge.sizes], dtype=edge.dtype, device=meta)
            for edge in graph.inputs
        ]
        for edge, made in zip(graph.outputs, graph(feeds), strict=True):
            assert made.device.type == "meta", path
            assert list(made.shape) == [size or 3 for size in edge.sizes], path


def test_shapes_are_computed_on_the_host_and_go_to_the_device_where_they_meet_tensors():
    nodes = [
        ("Shape", "x", "shape", {}),
        ("Gather", "shape zero", "n", {}),
        ("Mul", "n two", "twice", {}),
        ("Concat", "twice rest", "sizes", {"axis": 0}),
        ("Reshape", "x sizes", "y", {}),
        ("Cast", "shape", "floats", {"to": 1}),
        ("ReduceSum", "floats", "count", {"keepdims": 0}),
        ("Div", "x count", "z", {}),
        ("ConstantOfShape", "n", "zeros", {}),
        ("Range", "start n_number step", "places", {}),
        ("Squeeze", "n", "n_number", {}),
    ]
    nodes = [*nodes[:9], nodes[10], nodes[9]]
    constants = {"zero": [0], "two": [2], "rest": [2], "start": np.int64(0), "step": np.int64(1)}
    outputs = {"y": (1, [None, 2]), "z": FLOATS, "zeros": (1, [None]), "places": (7, [None])}
    model = graph_of(nodes, {"x": FLOATS}, outputs, constants)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    for got, expected in zip(
        torch_outputs(model, {"x": x}), run_plain(model, {"x": x}).values(), strict=True
    ):
        assert np.array_equal(got, expected)
        assert got.dtype == expected.dtype
    made = torch_graph(model, "meta")([torch.empty(3, 4, device="meta")])
    assert [tensor.device.type for tensor in made] == ["meta"] * 4


def test_a_shape_may_be_an_output():
    model = graph_of([("Shape", "x", "y", {})], {"x": FLOATS}, {"y": (7, [2])})
    assert torch_outputs(model, {"x": np.zeros((3, 4), np.float32)})[0].tolist() == [3, 4]


@pytest.mark.parametrize(("half", "number"), [("bfloat16", 16), ("float16", 10)])
@pytest.mark.parametrize("opset", [17, 22])
def test_graphs_of_half_precision(half, number, opset):
    """As an exporter writes them: casts at the ends, weights in the half type."""
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))
    halves = {name: helper.make_tensor(name, number, array.shape, array.flatten()) for name, array in
              (("w", w), ("b", b), ("low", np.float32(0)))}  # fmt: skip
    nodes = [
        ("Cast", "x", "h", {"to": number}), ("Conv", "h w b", "c", {"pads": [1] * 4}),
        ("Clip", "c low", "r", {}), ("MaxPool", "r", "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Cast", "p", "y", {"to": 1}),
    ]  # fmt: skip
    graph = torch_graph(
        graph_of(nodes, {"x": (1, x.shape)}, {"y": (1, None), "p": (number, None)}, halves, opset)
    )
    made, halved = graph([torch.from_numpy(x)])
    dtype = getattr(torch, half)
    assert halved.dtype == dtype
    assert made.dtype == torch.float32
    exact = [torch.from_numpy(each).to(dtype).float() for each in (x, w, b)]
    expected = torch.max_pool2d(torch.conv2d(*exact, padding=1).to(dtype).relu(), 2, 2)
    torch.testing.assert_close(made, expected.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("opset", [17, 21])
def test_quantised_graphs(opset):
    """int8 as an exporter writes it, with scales per channel and a bias of int32; ONNX Runtime fuses what it can."""
    rng = np.random.default_rng(0)
    scales = np.array([0.01, 0.02, 0.03, 0.04], np.float32)
    constants = {
        "w8": rng.integers(-127, 128, (4, 3, 3, 3), np.int8), "ws": scales, "wz": np.zeros(4, np.int8),
        "b32": rng.integers(-9999, 9999, 4, np.int32), "bs": scales * np.float32(0.02), "bz": np.zeros(4, np.int32),
        "xs": np.float32(0.02), "xz": np.int8(3), "ys": np.float32(0.1), "yz": np.int8(-5),
    }  # fmt: skip
    nodes = [
        ("QuantizeLinear", "x xs xz", "x8", {}), ("DequantizeLinear", "x8 xs xz", "xf", {}),
        ("DequantizeLinear", "w8 ws wz", "wf", {"axis": 0}), ("DequantizeLinear", "b32 bs bz", "bf", {"axis": 0}),
        ("Conv", "xf wf bf", "c", {"pads": [1] * 4}), ("Relu", "c", "r", {}),
        ("QuantizeLinear", "r ys yz", "y8", {}), ("DequantizeLinear", "y8 ys yz", "y", {}),
    ]  # fmt: skip
    shape = (2, 3, 6, 6)
    model = graph_of(nodes, {"x": (1, shape)}, {"y": (1, None)}, constants, opset)
    x = rng.standard_normal(shape).astype(np.float32)
    (got,), expected = torch_outputs(model, {"x": x}), run_plain(model, {"x": x})["y"]
    steps = np.abs(got - expected) / constants["ys"]
    assert steps.max() < 1.01, "two roundings may part by one step"
    assert (steps > 0.5).mean() < 0.01


def test_the_empty_name_is_an_output_that_nothing_reads():
    model = graph_of([("Split", "x", " ", {})], {"x": FLOATS}, {"y": (1, None)})
    model.graph.node[0].output[:] = ["", "y"]
    model.graph.node[0].attribute.extend(
        [helper.make_attribute("axis", 1), helper.make_attribute("num_outputs", 2)]
    )
    assert torch_outputs(model, {"x": np.arange(4, dtype=np.float32)[None]})[0].tolist() == [[2, 3]]


def test_an_output_left_out_at_the_end_is_not_asked_for():
    model = graph_of([("MaxPool", "x", "y", {"kernel_shape": [2]})], {"x": (1, [1, 1, 4])}, {"y": (1, None)})
    model.graph.node[0].output.append("")
    assert torch_outputs(model, {"x": np.arange(4, dtype=np.float32)[None, None]})[0].tolist() == [
        [[1, 2, 3]]
    ]


NEG = graph_of([("Neg", "x", "y", {})], {"x": FLOATS}, {"y": FLOATS})


def external(name="w", start=0, length=64, location="weights.bin", kind=1):
    tensor = TensorProto(name=name, data_type=kind, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", start), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return graph_of([("MatMul", f"x {name}", "y", {})], {"x": FLOATS}, {"y": FLOATS}, {name: tensor})


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (b"garbage", ["cannot load it"]),
        (b"", ["cannot load it"]),
        (NEG.SerializeToString()[:-20], ["cannot load it"]),
        (graph_of([("Det", "x", "y", {})], {"x": FLOATS}, {"y": FLOATS}),
         ["node 'Det of y' (Det)", "backend='onnxruntime'"]),
        (graph_of([("Neg", "x", "y", {})], {"x": FLOATS}, {"y": FLOATS}, domain="com.microsoft"),
         ["node 'Neg of y' (com.microsoft.Neg)", "backend='onnxruntime'"]),
        (graph_of([("Neg", "x", "y", {})], {"x": FLOATS}, {"y": FLOATS}, opset=16), ["opset 16", "17 to 22"]),
        (graph_of([("Neg", "x", "y", {})], {"x": FLOATS}, {"y": FLOATS}, opset=23), ["opset 23", "17 to 22"]),
        (graph_of([("Add", "x w", "y", {})], {"x": FLOATS}, {"y": FLOATS}), ["'w'", "nothing makes"]),
        (graph_of([("Neg", "x", "z", {})], {"x": FLOATS}, {"y": FLOATS}), ["'y'", "nothing makes"]),
        (graph_of([("Neg", "x", "y", {})], {"x": (14, ["N", 4])}, {"y": FLOATS}), ["'x'", "COMPLEX64"]),
        (graph_of([("Cast", "x", "y", {"to": 14})], {"x": FLOATS}, {"y": FLOATS}), ["Cast of y", "14"]),
        (graph_of([("Pad", "x pads", "y", {"mode": "ABOVE"})], {"x": FLOATS}, {"y": FLOATS}, {"pads": [0] * 4}),
         ["Pad of y", "ABOVE"]),
        (graph_of([("Reshape", "w sizes", "z", {}), ("Add", "x z", "y", {})], {"x": FLOATS}, {"y": FLOATS},
                  {"w": np.ones(3, np.float32), "sizes": [2, 2]}), ["Reshape of z", "torch failed"]),
        (external(start=64), ["'w'", "weights.bin"]),
        (external(start=-4), ["'w'", "weights.bin"]),
        (external(length=128), ["'w'", "weights.bin"]),
        (external(location="../weights.bin"), ["'w'", "weights.bin"]),
        (external(kind=8), ["'w'", "STRING"]),
    ],
    ids=["garbage", "empty", "truncated", "unknown operation", "other domain", "old opset", "new opset",
         "no such value", "no such output", "complex input", "complex cast", "attribute", "folding fails",
         "behind the end", "before the start", "too long", "other file", "strings"],
)  # fmt: skip
def test_what_cannot_be_run_names_the_graph_and_the_node(tmp_path, graph, words):
    (tmp_path / "weights.bin").write_bytes(bytes(100))
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    with pytest.raises(EngineError, match=WHERE) as caught:
        TorchGraph(data, Weights(tmp_path, CPU), CPU, WHERE)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("weights", [None, b""], ids=["missing", "empty"])
def test_weights_that_are_not_there(tmp_path, weights):
    if weights is not None:
        (tmp_path / "weights.bin").write_bytes(weights)
    with pytest.raises(EngineError, match=rf"{WHERE}.*weights\.bin cannot be read"):
        TorchGraph(external().SerializeToString(), Weights(tmp_path, CPU), CPU, WHERE)


def test_a_node_that_fails_is_named():
    graph = torch_graph(
        graph_of([("MatMul", "x w", "y", {})], {"x": FLOATS}, {"y": FLOATS}, {"w": np.eye(3)})
    )
    with pytest.raises(EngineError, match=rf"{WHERE}: node 'MatMul of y' \(MatMul\): torch failed"):
        graph([torch.zeros(1, 4)])


def test_every_operation_of_the_exported_networks_is_known(exported):
    kinds = {
        node.op_type
        for name in ("chain", "basic residual", "separable")
        for path in Path(exported(name).path).rglob("*.onnx")
        for node in onnx.load(path, load_external_data=False).graph.node
    }
    assert len(kinds) > 10
    assert kinds <= set(OPS)
