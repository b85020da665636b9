"""Graphs for TensorRT's parser: whole in themselves, and the same computation."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnx_graphs import run_plain
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines import ort
from rnp_deploy.engines.engine_weights import BundleArrays
from rnp_deploy.engines.trt_graph import Edge, piece_graph
from rnp_deploy.engines.trt_plan import piece_sources
from rnp_deploy.errors import EngineError


@pytest.mark.parametrize("name", ["chain", "bottleneck residual"])
def test_every_piece_computes_what_the_bundles_graph_does(name, exported):
    bundle = open_bundle(exported(name).path)
    arrays, random = BundleArrays(bundle), np.random.default_rng(0)
    open_engine = ort.opener(bundle, 1)
    for source in piece_sources(bundle.manifest):
        graph = piece_graph(bundle, arrays, source.file, source.where, source.inputs, source.outputs)
        model = onnx.ModelProto.FromString(graph.onnx)
        onnx.checker.check_model(model, full_check=True)
        assert {node.op_type for node in model.graph.node}.isdisjoint({"Slice", "Identity"}), source.where
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        feeds = {e.name: random.standard_normal((3, *e.shape)).astype(np.float32) for e in source.inputs}
        got, expected = run_plain(model, feeds), open_engine(source.file).run(feeds)
        assert list(got) == [edge.name for edge in source.outputs]
        for edge in source.outputs:
            assert str(got[edge.name].dtype) == edge.dtype
            np.testing.assert_allclose(got[edge.name], expected[edge.name], rtol=1e-5, atol=1e-5)


class Folder:
    """A bundle of one hand-made graph."""

    def __init__(self, path, nodes, weights, x=1, y=1, shape=(4,), opsets=()):
        self.path = path
        (path / "weights.bin").write_bytes(b"\0" * 64)
        infos = [helper.make_tensor_value_info(n, kind, ["N", *shape]) for n, kind in (("x", x), ("y", y))]
        graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], weights)
        opsets = [helper.make_opsetid("", 20), *opsets]
        self._data = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()

    def graph(self, file):
        return self._data

    def piece(self, x="float32", y="float32", shape=(4,)):
        edges = Edge("x", shape, x), Edge("y", shape, y)
        graph = piece_graph(self, BundleArrays(self), "s/1.onnx", "stage 1 (s/1.onnx)", edges[:1], edges[1:])
        return graph, onnx.ModelProto.FromString(graph.onnx).graph


def tensor(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


NUMBERS = np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"starts": [1], "ends": [3], "axes": [0]}, NUMBERS[1:3]),
        ({"starts": [0], "ends": [2**31], "axes": [-2], "steps": [2]}, NUMBERS[::2]),
        ({"starts": [2, 1], "ends": [4, -1]}, NUMBERS[2:4, 1:-1]),
        ({"starts": [5], "ends": [-7], "axes": [0], "steps": [-1]}, NUMBERS[::-1]),
    ],
    ids=["one axis", "with steps", "all axes", "backwards"],
)
def test_cuts_of_weights_are_made(tmp_path, arguments, expected):
    inputs = ["w", *(name if name in arguments else "" for name in ("starts", "ends", "axes", "steps"))]
    nodes = [
        helper.make_node("Slice", [*inputs], ["cut"]),
        helper.make_node("ReduceSum", ["cut"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    weights = [tensor("w", NUMBERS), *(tensor(name, v, np.int64) for name, v in arguments.items())]
    _, graph = Folder(tmp_path, nodes, weights).piece()
    assert [node.op_type for node in graph.node] == ["ReduceSum", "Add"]
    assert [t.name for t in graph.initializer] == ["cut"]
    np.testing.assert_array_equal(numpy_helper.to_array(graph.initializer[0]), expected)


def test_a_cut_of_what_is_dequantised_stays(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("Slice", ["w", "starts", "ends"], ["cut"]),
        helper.make_node("QuantizeLinear", ["x", "scale"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale"], ["xd"]),
        helper.make_node("Add", ["xd", "cut"], ["y"]),
    ]
    weights = [tensor("q", [1, 2, 3, 4, 5, 6], np.int8), tensor("scale", 0.5)]
    weights += [tensor("starts", [1], np.int64), tensor("ends", [5], np.int64)]
    piece, graph = Folder(tmp_path, nodes, weights, y=1).piece()
    assert [node.op_type for node in graph.node] == [node.op_type for node in nodes]
    assert piece.dtypes == {"float32", "int8"}


def test_renames_are_gone_and_names_of_edges_stay(tmp_path):
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["y"]),
        helper.make_node("Tanh", ["b"], ["unread"]),
    ]
    _, graph = Folder(tmp_path, nodes, []).piece()
    assert [(n.op_type, list(n.input), list(n.output)) for n in graph.node] == [("Relu", ["x"], ["y"])]


@pytest.mark.parametrize("source", ["x", "w"])
def test_a_rename_of_an_edge_or_a_weight_to_an_output_stays(tmp_path, source):
    nodes = [helper.make_node("Identity", [source], ["y"])]
    weights = [tensor("w", np.ones((1, 4)))]
    _, graph = Folder(tmp_path, nodes, weights).piece()
    assert [(n.op_type, list(n.input), list(n.output)) for n in graph.node] == [("Identity", [source], ["y"])]


def test_whole_numbers_are_cast_and_read_on(tmp_path):
    nodes = [
        helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0),
        helper.make_node("Cast", ["y"], ["unread"], to=1),
    ]
    _, graph = Folder(tmp_path, nodes, [], y=7, shape=()).piece(y="int32", shape=())
    assert [(n.op_type, list(n.input), list(n.output)) for n in graph.node] == [
        ("ArgMax", ["x"], ["y_int64"]),
        ("Cast", ["y_int64"], ["y"]),
    ]
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.INT32


@pytest.mark.parametrize(
    ("weight", "y", "asked", "words"),
    [
        (np.float32, 10, {"x": "float16", "y": "float16"}, r"stage 1 .*node name: the sum.*one precision"),
        (np.float16, 10, {"x": "float16"}, "'y' is not float32 \\[N, 4\\] in the graph"),
        (np.float16, 10, {"x": "float16", "y": "float16", "shape": (5,)}, r"'x' is not float16 \[N, 5\]"),
    ],
    ids=["mixed", "type of an output", "shape"],
)
def test_what_does_not_fit(tmp_path, weight, y, asked, words):
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], "the sum")]
    folder = Folder(tmp_path, nodes, [tensor("w", np.ones(4), weight)], x=10, y=y)
    with pytest.raises(EngineError, match=words):
        folder.piece(**asked)


def test_an_input_that_nothing_gives(tmp_path):
    folder = Folder(tmp_path, [helper.make_node("Relu", ["x"], ["y"])], [])
    edge = Edge("y", (4,), "float32")
    with pytest.raises(EngineError, match="nothing gives its input 'x'"):
        piece_graph(folder, BundleArrays(folder), "f", "stage 1", (), (edge,))
