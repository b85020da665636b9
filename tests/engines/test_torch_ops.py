"""Single operations: torch = ONNX Runtime, with attributes given and left out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from one_node import assert_same, compared, one_node, torch_graph
from rnp_deploy.engines.torch_ops import OPS
from rnp_deploy.errors import EngineError

RELAXED = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}
RANDOM = np.random.default_rng(6)


def normal(*shape, dtype=np.float32):
    return (2 * RANDOM.standard_normal(shape)).astype(dtype)


def ints(*values, dtype=np.int64):
    return np.array(values, dtype)


def named(value):
    """In the name of a test: not a whole array."""
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype}{list(value.shape)}"
    return " ".join(map(named, value)) if isinstance(value, list) else str(value)


X = normal(2, 3, 4)
POSITIVE = np.abs(X) + np.float32(0.1)
HALVES = np.arange(-4, 4, 0.5, dtype=np.float32)
TIES = np.array([[1, 3, 3, 0], [2, 2, 2, 2]], np.float32)
BOOLS = X > 0
WHOLE = RANDOM.integers(-9, 9, (2, 3, 4))
DIVISORS = np.array([-3, -2, 2, 3])

UNARY = {
    **dict.fromkeys(["Abs", "Asinh", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "HardSwish", "IsNaN"], X),
    **dict.fromkeys(["Mish", "Neg", "Relu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Tan", "Tanh"], X),
    **dict.fromkeys(["Log", "Reciprocal", "Sqrt"], POSITIVE),
    "Acos": np.tanh(X), "Acosh": 1 + POSITIVE, "Asin": np.tanh(X), "Atanh": np.tanh(X), "Identity": X,
    "Not": BOOLS, "Round": HALVES,
}  # fmt: skip


@pytest.mark.parametrize("kind", UNARY)
def test_of_one(kind):
    assert_same(kind, [UNARY[kind]])


ROW = normal(4)
COMPARED = {kind: [HALVES, np.flip(HALVES).copy()] for kind in
            ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("Add", [X, ROW]), ("Sub", [ROW, X]), ("Mul", [X, normal(3, 1)]), ("Div", [X, POSITIVE]),
        ("Div", [WHOLE, DIVISORS]), ("Add", [WHOLE, DIVISORS]), ("Pow", [POSITIVE, normal(1)]),
        ("Pow", [WHOLE, ints(2)]), ("Pow", [WHOLE, np.float32(2)]), ("MatMul", [X, normal(4, 5)]),
        ("MatMul", [X, normal(2, 4, 5)]), ("PRelu", [X, normal(3, 1)]), ("And", [BOOLS, ~BOOLS[:1]]),
        ("Or", [BOOLS, BOOLS[:1]]), ("Xor", [BOOLS, BOOLS[:1]]), *COMPARED.items(),
        ("Max", [X, ROW, normal(1)]), ("Min", [X, ROW]), ("Max", [X]), ("Sum", [X, ROW, X]), ("Mean", [X, ROW]),
        ("Where", [BOOLS, X, ROW]), ("CastLike", [X, WHOLE]), ("Dropout", [X]),
    ],
    ids=named,
)  # fmt: skip
def test_of_several(kind, inputs):
    assert_same(kind, inputs)


@pytest.mark.parametrize(
    ("kind", "x", "attributes"),
    [
        ("Celu", X, {}), ("Celu", X, {"alpha": 0.5}), ("Elu", X, {}), ("Elu", X, {"alpha": 0.5}),
        ("Gelu", X, {}), ("Gelu", X, {"approximate": "tanh"}), ("HardSigmoid", X, {}),
        ("HardSigmoid", X, {"alpha": 0.1, "beta": 0.4}), ("LeakyRelu", X, {}), ("LeakyRelu", X, {"alpha": 0.3}),
        ("Selu", X, {}), ("Selu", X, {"alpha": 1.5, "gamma": 0.7}), ("ThresholdedRelu", X, {}),
        ("ThresholdedRelu", X, {"alpha": 0.3}), ("Softmax", X, {}), ("Softmax", X, {"axis": 1}),
        ("LogSoftmax", X, {}), ("LogSoftmax", X, {"axis": 0}), ("Flatten", X, {}), ("Flatten", X, {"axis": 0}),
        ("Flatten", X, {"axis": 2}), ("Flatten", X, {"axis": -1}), ("Flatten", X, {"axis": 3}),
        ("Transpose", X, {}), ("Transpose", X, {"perm": [1, 2, 0]}), ("ArgMax", TIES, {"axis": 1}),
        ("ArgMax", X, {}),
        ("ArgMin", TIES, {"axis": -1, "keepdims": 0}),
        ("Shape", X, {}), ("Shape", X, {"start": 1}), ("Shape", X, {"start": -2, "end": -1}),
        ("Cast", X, {"to": 7}), ("Cast", HALVES, {"to": 6}), ("Cast", X, {"to": 10}), ("Cast", HALVES, {"to": 9}),
        ("GlobalAveragePool", X, {}), ("GlobalMaxPool", normal(2, 3, 4, 5), {}),
        ("Concat", X, {"axis": 1}), ("Squeeze", normal(2, 1, 3, 1), {}),
    ],
    ids=named,
)  # fmt: skip
def test_of_one_with_attributes(kind, x, attributes):
    assert_same(kind, [x], **attributes)


@pytest.mark.parametrize("fmod", [{}, {"fmod": 1}], ids=str)
def test_mod(fmod):
    assert_same("Mod", [WHOLE, DIVISORS], **fmod)
    if fmod:
        assert_same("Mod", [X, ROW], **fmod)


LOW, HIGH = np.float32(-0.5), np.float32(0.7)


@pytest.mark.parametrize("bounds", [[], [LOW], [None, HIGH], [LOW, HIGH]], ids=str)
@pytest.mark.parametrize("constant", [{1, 2}, ()], ids=["constant", "computed"])
def test_clip(bounds, constant):
    assert_same("Clip", [X, *bounds], constant=constant)
    assert_same("Clip", [WHOLE, *[b if b is None else np.int64(9 * b) for b in bounds]], constant=constant)


REDUCTIONS = ["ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
              "ReduceSum", "ReduceSumSquare"]  # fmt: skip


@pytest.mark.parametrize("kind", REDUCTIONS)
@pytest.mark.parametrize("axes", [None, [1], [-1], [0, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("attributes", [{}, {"keepdims": 0}], ids=str)
def test_reductions(kind, axes, attributes):
    inputs = [POSITIVE] if axes is None else [POSITIVE, ints(*axes)]
    assert_same(kind, inputs, constant={1}, **attributes)
    if axes is not None:
        assert_same(kind, inputs, **attributes)
    if kind != "ReduceSum":  # its axes have been an input since opset 13
        named = {} if axes is None else {"axes": axes}
        assert_same(kind, [POSITIVE], opset=17, **attributes, **named)


def test_reductions_of_no_axes():
    assert_same("ReduceSum", [X, ints()], noop_with_empty_axes=1)
    assert_same("ReduceSum", [X, ints()])


@settings(max_examples=80, **RELAXED)
@given(data=st.data(), constant=st.booleans())
def test_slice(data, constant):
    x = normal(3, 4, 5)
    axes = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True))
    any_end = st.one_of(st.integers(-8, 8), st.sampled_from([2**63 - 1, -(2**63) + 1]))
    starts, ends = ([data.draw(any_end) for _ in axes] for _ in range(2))
    steps = [data.draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in axes]
    # Backwards, ONNX Runtime takes the largest integer for the smallest.
    assume(all(end < 9 or step > 0 for end, step in zip(ends, steps, strict=True)))
    named = [axis - 3 * data.draw(st.booleans()) for axis in axes]
    inputs = [x, ints(*starts), ints(*ends), ints(*named), ints(*steps)]
    assert_same("Slice", inputs, constant={1, 2, 3, 4} if constant else ())
    first = sorted(axes) == list(range(len(axes)))
    if first:
        assert_same("Slice", [x, ints(*starts), ints(*ends)])
    assert_same("Slice", [x, ints(*starts), ints(*ends), None, ints(*steps)])


@settings(max_examples=60, **RELAXED)
@given(data=st.data(), constant=st.booleans(), value=st.sampled_from([None, np.float32(2.5)]))
def test_pad(data, constant, value):
    axes = data.draw(st.one_of(st.none(), st.lists(st.integers(-3, 2), min_size=1, max_size=3,
                                                   unique_by=lambda axis: axis % 3)))  # fmt: skip
    n = 3 if axes is None else len(axes)
    pads = data.draw(st.lists(st.integers(-1, 2), min_size=2 * n, max_size=2 * n))
    inputs = [X, ints(*pads)] + ([value] if axes is None else [value, ints(*axes)])
    assert_same("Pad", inputs[:2] if inputs[2:] == [None] else inputs, constant={1, 2, 3} if constant else ())


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_pad_by_what_is_there(mode):
    inputs = [normal(1, 2, 5, 5), ints(0, 0, 2, 1, 0, 0, 1, 2)]
    assert_same("Pad", inputs, constant={1}, mode=mode, opset=19)


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ([6, 4], {}),
        ([0, -1], {}),
        ([4, 0, 2], {}),
        ([-1], {}),
        ([2, 3, 2, 2], {"allowzero": 1}),
        ([0, 0, 4], {}),
    ],
    ids=named,
)
@pytest.mark.parametrize("constant", [{1}, ()], ids=["constant", "computed"])
def test_reshape(shape, attributes, constant):
    x = normal(2, 3, 4) if shape != [4, 0, 2] else normal(4, 2, 2)
    assert_same("Reshape", [x, ints(*shape)], constant=constant, **attributes)


def test_reshape_to_nothing():
    assert_same("Reshape", [normal(2, 0, 3), ints(3, 0)], constant={1}, allowzero=1)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes"),
    [
        ("Squeeze", [normal(2, 1, 3, 1), ints(1)], {}), ("Squeeze", [normal(2, 1, 3, 1), ints(-1, 1)], {}),
        ("Unsqueeze", [X, ints(0, -1)], {}), ("Unsqueeze", [X, ints(3, 1)], {}),
        ("Expand", [normal(3, 1), ints(2, 1, 4)], {}), ("Expand", [normal(2, 3, 1), ints(4)], {}),
        ("Tile", [X, ints(1, 2, 3)], {}), ("Gather", [X, ints(1, -1)], {}), ("Gather", [X, np.int64(-2)], {"axis": 1}),
        ("Gather", [X, np.array([[0, 3], [-1, 1]])], {"axis": -1}), ("GatherND", [X, np.array([[0, 1], [1, -1]])], {}),
        ("GatherElements", [X, np.zeros((1, 3, 4), np.int64) - 1], {}),
        ("GatherElements", [X, np.array([[[2, 0]]])], {"axis": 2}), ("ConstantOfShape", [ints(2, 3)], {}),
        ("ConstantOfShape", [ints()], {}),
        ("ConstantOfShape", [ints(4)], {"value": numpy_helper.from_array(ints(7))}),
        ("Range", [np.int64(3), np.int64(12), np.int64(4)], {}),
        ("Range", [np.int32(5), np.int32(-5), np.int32(-3)], {}),
        ("Range", [np.float32(0), np.float32(2), np.float32(0.3)], {}),
    ],
    ids=named,
)  # fmt: skip
@pytest.mark.parametrize("constant", [{1, 2}, (), {0, 1, 2}], ids=["constant", "computed", "folded"])
def test_shapes_and_places(kind, inputs, attributes, constant):
    assert_same(kind, inputs, constant=constant, **attributes)


@pytest.mark.parametrize(
    ("sizes", "outputs", "attributes"),
    [([1, 4, 2], 3, {"axis": 1}), ([3, 4], 2, {"axis": -1}), (None, 2, {"num_outputs": 2}),
     (None, 3, {"num_outputs": 3, "axis": 1}), (None, 7, {"opset": 17, "axis": 1})],
    ids=named,
)  # fmt: skip
def test_split(sizes, outputs, attributes):
    x = normal(2, 7, 7)
    assert_same("Split", [x] if sizes is None else [x, ints(*sizes)], outputs, **attributes)


def test_concat_of_several():
    assert_same("Concat", [X, X[:, :1], X[:, 1:]], axis=-2)


@pytest.mark.parametrize(
    "attributes",
    [{"value": numpy_helper.from_array(X)}, {"value_float": 0.5}, {"value_floats": [0.5, 1.5]}, {"value_int": 3},
     {"value_ints": [3, 4]}],
    ids=lambda given: next(iter(given)),
)  # fmt: skip
def test_constant(attributes):
    assert_same("Constant", [], **attributes)


def test_gather_nd_of_batches_is_refused():
    model, _ = one_node("GatherND", [X, np.zeros((2, 1), np.int64)], batch_dims=1)
    with pytest.raises(EngineError, match=r"'the GatherND'.*batch_dims"):
        torch_graph(model)


def test_every_operation_of_the_table_was_compared(request):
    """By the tests above and those of the layers, which run before."""
    ran = {item.path.name for item in request.session.items}
    some = request.config.getoption("keyword") or any("::" in given for given in request.config.args)
    if some or not {"test_torch_layers.py", "test_torch_ops.py"} <= ran:
        pytest.skip("only some of the tests that compare were run")
    assert sorted(OPS.keys() - compared) == []
