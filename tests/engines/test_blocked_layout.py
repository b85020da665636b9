"""Pieces whose edges are blocked compute what one session of the whole graph does."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnx_graphs import GraphWriter, blocked_layout, plain_layout, run_plain
from onnx_pieces import (
    READERS,
    H,
    W,
    conv_and_plain_op,
    convolution,
    convolved_and_added,
    depthwise,
    output_read_by_conv,
    output_read_inside,
    piece,
    plain_op,
    residual,
    residual_then_read,
    sums_in_a_row,
    two_readers,
    unblocked_reader,
)
from rnp_deploy.engines.blocked_layout import (
    MarkedGraph,
    block_size,
    in_place_inputs,
    marked_graph,
    optimised,
    with_blocked_edges,
)
from rnp_deploy.engines.ort import engine_from_onnx
from rnp_deploy.errors import EngineError

#: Below, at and above one block, of 8 or 16; those that 4 does not divide are never blocked.
WIDTHS = [4, 6, 8, 10, 12, 16, 18, 20, 24, 40, 48]
#: ONNX Runtime adds a sum into its convolution's accumulator in one layout, and not in another.
ROUNDING = 2e-6


@pytest.fixture(scope="session")
def block(tmp_path_factory):
    """Channels in a block on this machine."""
    return block_size(tmp_path_factory.mktemp("probe"))


@pytest.fixture
def known_blocks(block):
    if block == 1:
        pytest.skip("ONNX Runtime knows no blocked layout on this machine")
    return block


def images(channels, batch=3, seed=0):
    return np.random.default_rng(seed).standard_normal((batch, channels, H, W)).astype(np.float32)


def session_of(model, folder):
    return engine_from_onnx(model.SerializeToString(), folder, "piece", 1, optimised=True)


def kinds_of(model):
    return [node.op_type for node in model.graph.node]


def blocked_piece(write, channels, block, folder):
    """The piece with all the blocked edges it can have; its outputs that are blocked."""
    marked = marked_graph(piece(write, channels), ["x"], folder, "piece")
    return with_blocked_edges(marked, {"x"} | marked.makes_blocked, block), marked.makes_blocked


@pytest.mark.parametrize("write", READERS.values(), ids=READERS)
@pytest.mark.parametrize("edges", ["blocked", "plain"])
def test_a_piece_computes_the_same_at_every_width(write, edges, block, tmp_path):
    """What the added channels of a block hold does not matter."""
    exact = "Add" not in kinds_of(piece(write, 8))
    for channels in WIDTHS:
        model, x = piece(write, channels), images(channels)
        expected = run_plain(model, {"x": x})
        marked = marked_graph(model, ["x"], tmp_path, "piece")
        blocked = {"x"} | marked.makes_blocked if edges == "blocked" else set()
        built = with_blocked_edges(marked, blocked, block)
        feed = blocked_layout(x, block, padding=7.0) if blocked else x
        got = session_of(built, tmp_path).run({"x": feed})
        assert set(got) == set(expected)
        for name, array in got.items():
            array = plain_layout(array, block, channels) if name in blocked else array
            error = np.abs(array - expected[name]).max()
            assert error <= (0 if exact else ROUNDING), (channels, name, error)


@pytest.mark.parametrize(
    ("write", "nodes"),
    [
        (convolution, ["Conv"]),
        (conv_and_plain_op, ["Conv", "Sigmoid"]),
        (depthwise, ["Conv"]),
        (residual, ["Conv", "Conv"]),
        (output_read_by_conv, ["Conv", "Relu", "Conv"]),
    ],
)
@pytest.mark.parametrize("channels", [16, 24, 48])
def test_no_reorder_is_left_where_all_is_blocked(write, nodes, channels, known_blocks, tmp_path):
    built, makes = blocked_piece(write, channels, known_blocks, tmp_path)
    assert makes == {info.name for info in built.graph.output}
    assert sorted(kinds_of(built)) == sorted(nodes)
    widths = {
        info.type.tensor_type.shape.dim[1].dim_value for info in (*built.graph.input, *built.graph.output)
    }
    assert widths == {-(-channels // known_blocks) * known_blocks}


@pytest.mark.parametrize("channels", WIDTHS)
def test_no_marker_is_left(channels, block, tmp_path):
    for write in READERS.values():
        for blocked in ({"x"}, set()):
            marked = marked_graph(piece(write, channels), ["x"], tmp_path, "piece")
            built = with_blocked_edges(marked, blocked, block)
            convs = [node for node in built.graph.node if node.op_type in ("Conv", "FusedConv")]
            assert len(convs) == sum(node.op_type == "Conv" for node in piece(write, channels).graph.node)
            assert all(not info.name.startswith("mark/") for info in built.graph.output)


def test_who_reads_blocked(known_blocks, tmp_path):
    for channels in (16, 24, 48):
        for write in (convolution, depthwise, plain_op("Relu"), residual, unblocked_reader):
            assert marked_graph(piece(write, channels), ["x"], tmp_path, "piece").reads_blocked == {"x"}
        softmax = lambda g, c: [g.add("Softmax", "x", "y", axis=1)]  # noqa: E731
        assert marked_graph(piece(softmax, channels), ["x"], tmp_path, "piece").reads_blocked == set()
    narrow = marked_graph(piece(convolution, known_blocks // 2), ["x"], tmp_path, "piece")
    assert narrow.reads_blocked == set()  # fewer channels than a block are read plain
    assert narrow.makes_blocked == {"y"}


def test_a_marker_that_stays_a_plain_convolution(known_blocks, tmp_path):
    """4 does not divide the channels: a blocked edge is reordered for all that read it."""
    marked = marked_graph(piece(residual, 18), ["x"], tmp_path, "piece")
    assert [n.op_type for n in marked.model.graph.node if n.output[0] == "mark/x"] == ["Conv"]
    assert marked.reads_blocked == set()
    built = with_blocked_edges(marked, {"x"}, known_blocks)
    assert [n.op_type for n in built.graph.node if "x" in n.input] == ["ReorderOutput"]


def test_an_edge_is_blocked_though_one_op_reads_it_plain(known_blocks, tmp_path):
    built, _ = blocked_piece(unblocked_reader, 24, known_blocks, tmp_path)
    readers = sorted(node.op_type for node in built.graph.node if "x" in node.input)
    assert readers == ["Conv", "ReorderOutput"]


def test_an_output_is_blocked_though_one_op_reads_it_plain(known_blocks, tmp_path):
    built, makes = blocked_piece(output_read_inside, 24, known_blocks, tmp_path)
    assert makes == {"y", "t"}
    assert sorted(node.op_type for node in built.graph.node if "y" in node.input) == ["ReorderOutput", "Tanh"]


def test_pooled_blocks_of_one_pixel_are_channels(known_blocks, tmp_path):
    """Where none is padded nothing is reordered; where some are, they must not be read."""
    for channels, reorders in ((2 * known_blocks, 0), (2 * known_blocks + 4, 1)):
        g = GraphWriter()
        g.conv("x", "h", (channels, channels))
        g.add("GlobalAveragePool", "h", "p")
        g.add("Flatten", "p", "y", axis=1)
        model = g.model({"x": (channels, H, W)}, {"y": (channels,)})
        x = images(channels)
        expected = run_plain(model, {"x": x})["y"]
        built = with_blocked_edges(marked_graph(model, ["x"], tmp_path, "piece"), {"x"}, known_blocks)
        assert kinds_of(built).count("ReorderOutput") == reorders
        got = session_of(built, tmp_path).run({"x": blocked_layout(x, known_blocks, padding=7.0)})["y"]
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (residual, {"y": "x"}),
        (sums_in_a_row, {"z": "x"}),
        (residual_then_read, {}),
        (convolved_and_added, {}),
        (convolution, {}),
        (two_readers, {}),
    ],
)
@pytest.mark.parametrize("channels", [16, 24, 48])
def test_sums_in_place(write, found, channels, known_blocks, tmp_path):
    built, makes = blocked_piece(write, channels, known_blocks, tmp_path)
    assert in_place_inputs(built) == found
    # In the memory of its input the sum is what it is elsewhere.
    session, x = session_of(built, tmp_path), blocked_layout(images(channels), known_blocks)
    expected = session.run({"x": x})
    arrays = {name: x if name in found else np.empty_like(x) for name in makes}
    session.bind({"x": x}, arrays)()
    for name in makes:
        np.testing.assert_array_equal(arrays[name], expected[name])


def test_an_output_that_is_left_out_is_no_input_that_is_left_out(known_blocks, tmp_path):
    """A ``GRU`` without its first output comes not before a convolution without bias: it may read x later."""
    g = GraphWriter()
    for name in ("a", "b"):
        g.conv("x" if name == "a" else "a", name, (16, 16))
        g.nodes[-1].input.pop()
    g.add("Add", "b x", "y")
    g.add("GlobalAveragePool", "x", "p")
    g.weights |= {"flat": np.array([1, -1, 16]), "w": np.ones((1, 12, 16), np.float32)}
    g.weights["r"] = np.ones((1, 12, 4), np.float32)
    g.add("Reshape", "p flat", "sequence")
    g.add("GRU", "sequence w r", "", hidden_size=4)
    g.nodes[-1].output.append("z")
    model = g.model({"x": (16, H, W)}, {"y": (16, H, W)})
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, None))
    marked = marked_graph(model, ["x"], tmp_path, "piece")
    built = with_blocked_edges(marked, {"x", "y"}, known_blocks)
    (summed,) = (node for node in built.graph.node if len(node.input) == 4 and node.op_type == "Conv")
    assert list(summed.input)[2:] == ["", "x"]
    assert in_place_inputs(built) == {}


def test_the_tests_of_sums_see_that_they_are_fused(known_blocks, tmp_path):
    built, _ = blocked_piece(residual, 24, known_blocks, tmp_path)
    assert [len(node.input) for node in built.graph.node if node.op_type == "Conv"] == [3, 4]


def test_two_inputs_of_which_one_is_blocked(known_blocks, tmp_path):
    g = GraphWriter()
    g.conv("x", "a", (24, 24))
    g.add("Add", "a u", "y")
    shapes = {"x": (24, H, W), "u": (24, H, W)}
    feeds = {"x": images(24), "u": images(24, seed=1)}
    model = g.model(shapes, {"y": (24, H, W)})
    expected = run_plain(model, feeds)["y"]
    for blocked in ({"x"}, {"u"}, {"x", "u"}):
        marked = marked_graph(copy.deepcopy(model), ["x", "u"], tmp_path, "piece")
        assert marked.reads_blocked == {"x", "u"}
        built = with_blocked_edges(marked, blocked, known_blocks)
        assert in_place_inputs(built) == {}  # the output is plain
        given = {n: blocked_layout(a, known_blocks, 3.0) if n in blocked else a for n, a in feeds.items()}
        np.testing.assert_allclose(session_of(built, tmp_path).run(given)["y"], expected, atol=ROUNDING)


def test_the_block_is_that_of_the_runtime(known_blocks, tmp_path):
    assert known_blocks in (8, 16)
    g = GraphWriter()
    g.conv("x", "y", (3, 64))
    done = optimised(g.model({"x": (3, H, W)}, {"y": (64, H, W)}), tmp_path, "piece")
    conv = session_of(with_blocked_edges(_unmarked(done), {"y"}, known_blocks), tmp_path)
    x = images(3)
    expected = run_plain(g.model({"x": (3, H, W)}, {"y": (64, H, W)}), {"x": x})["y"]
    np.testing.assert_array_equal(plain_layout(conv.run({"x": x})["y"], known_blocks, 64), expected)


def _unmarked(model):
    return MarkedGraph(model, frozenset(), frozenset({"y"}))


def test_a_graph_that_cannot_be_loaded_is_named(tmp_path):
    g = GraphWriter()
    g.add("NoSuchOp", "x", "y")
    with pytest.raises(EngineError, match=r"stages/03/full\.onnx: ONNX Runtime .* cannot optimise it"):
        optimised(g.model({"x": (3, H, W)}, {"y": (3, H, W)}), tmp_path, "stages/03/full.onnx")


LAYERS = st.sampled_from(["conv", "pointwise", "depthwise", "Relu", "Sigmoid", "Tanh", "add", "mul", "widen"])


def random_halves(layers, cut, channels):
    """A graph written as a whole and in two halves, the second of which reads any tensor of the first.

    Returns:
        The three models, and the names of the tensors between the halves.
    """
    whole, halves = GraphWriter(), [GraphWriter(), GraphWriter()]
    widths, made = {"x": channels}, ["x"]
    first_half = set()
    for i, (kind, other, wide) in enumerate(layers):
        last, name = made[-1], f"t{i}"
        c = widths[last]
        alike = [t for t in made if widths[t] == c]
        added = alike[other % len(alike)]
        for g in (whole, halves[i >= cut]):
            g._random = np.random.default_rng(i)
            if kind in ("conv", "pointwise"):
                g.conv(last, name, (c, c), kernel=3 if kind == "conv" else 1)
            elif kind == "widen":
                g.conv(last, name, (c, wide))
            elif kind == "depthwise":
                g.conv(last, name, (c, c), group=c)
            elif kind in ("add", "mul"):
                g.add(kind.title(), f"{last} {added}", name)
            else:
                g.add(kind, last, name)
        widths[name] = wide if kind == "widen" else c
        made.append(name)
        if i < cut:
            first_half.add(name)
    read = {name for node in halves[1].nodes for name in node.input}
    edges = sorted(read & first_half)
    shape = {name: (width, H, W) for name, width in widths.items()}
    x, y = {"x": shape["x"]}, {made[-1]: shape[made[-1]]}
    between = {name: shape[name] for name in edges}
    second_inputs = between | (x if "x" in read else {})
    return (whole.model(x, y), halves[0].model(x, between), halves[1].model(second_inputs, y)), edges


def test_two_halves_joined_are_the_whole(block, tmp_path):
    seen = []

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(
        layers=st.lists(
            st.tuples(LAYERS, st.integers(0, 9), st.sampled_from(WIDTHS)), min_size=2, max_size=9
        ),
        share=st.floats(0.1, 0.9),
        channels=st.sampled_from(WIDTHS),
        batch=st.sampled_from([1, 3]),
    )
    def check(layers, share, channels, batch):
        halves, edges = random_halves(layers, max(1, round(share * len(layers))), channels)
        assume(edges)
        seen.append(len(assert_joined_is_whole(halves, edges, images(channels, batch), block, tmp_path)))

    check()
    assert block == 1 or sum(count > 0 for count in seen) > len(seen) / 4


def assert_joined_is_whole(halves, edges, x, block, folder):
    """Bit for bit, unless a sum is in it; returns the edges that were blocked."""
    whole, first, second = halves
    made = marked_graph(first, [], folder, "first")
    read = marked_graph(second, edges, folder, "second")
    blocked = made.makes_blocked & read.reads_blocked & set(edges)
    between = session_of(with_blocked_edges(made, blocked, block), folder).run({"x": x})
    joined = with_blocked_edges(read, blocked, block)
    inputs = {info.name for info in joined.graph.input}
    got = session_of(joined, folder).run({n: a for n, a in (between | {"x": x}).items() if n in inputs})
    for name, array in run_plain(whole, {"x": x}).items():
        limit = ROUNDING * max(1.0, float(np.abs(array).max())) if "Add" in kinds_of(whole) else 0
        assert np.abs(got[name] - array).max() <= limit
    return blocked
