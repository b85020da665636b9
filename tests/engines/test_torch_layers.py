"""Convolutions, pooling, products, norms and quantisation: torch = ONNX Runtime, for any attributes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from one_node import assert_same, one_node, torch_graph, torch_outputs
from rnp_deploy.engines.torch_layers import Node, make_pool
from rnp_deploy.errors import EngineError

RELAXED = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.too_slow]}
RANDOM = np.random.default_rng(5)


def normal(*shape, dtype=np.float32):
    return RANDOM.standard_normal(shape).astype(dtype)


@st.composite
def windows(draw, axes, dilated=True):
    """Attributes of windows over images of at least 7 in each axis; what is left out takes ONNX's defaults."""

    def each(low, high):
        return st.lists(st.integers(low, high), min_size=axes, max_size=axes)

    kernel = draw(each(1, 4))
    given = {}
    if draw(st.booleans()):
        given["strides"] = draw(each(1, 3))
    if dilated and draw(st.booleans()):
        given["dilations"] = draw(each(1, 2))
    padding = draw(st.sampled_from(["none", "same on both sides", "any"]))
    # ONNX Runtime knows no pads of a whole kernel.
    before, after = ([draw(st.integers(0, k - 1)) for k in kernel] for _ in range(2))
    if padding == "any":
        given["pads"] = before + after
    elif padding == "same on both sides":
        given["pads"] = before * 2
    return kernel, given


sizes = st.lists(st.integers(7, 10), min_size=1, max_size=3)


@settings(max_examples=60, **RELAXED)
@given(
    data=st.data(), image=sizes, groups=st.sampled_from([1, 2, 4]), bias=st.booleans(), named=st.booleans()
)
def test_conv(data, image, groups, bias, named):
    kernel, attributes = data.draw(windows(len(image)))
    if named:
        attributes["kernel_shape"] = kernel
    if groups > 1:
        attributes["group"] = groups
    inputs = [normal(2, 4, *image), normal(8, 4 // groups, *kernel)] + ([normal(8)] if bias else [])
    assert_same("Conv", inputs, constant={1, 2}, tolerance=1e-4, **attributes)


@settings(max_examples=60, **RELAXED)
@given(data=st.data(), image=sizes, ceil=st.sampled_from([None, 0, 1]))
def test_max_pool(data, image, ceil):
    kernel, attributes = data.draw(windows(len(image)))
    given_ceil = {} if ceil is None else {"ceil_mode": ceil}
    assert_same("MaxPool", [normal(2, 3, *image)], kernel_shape=kernel, **attributes, **given_ceil)


@settings(max_examples=80, **RELAXED)
@given(data=st.data(), image=sizes, ceil=st.sampled_from([None, 0, 1]), count=st.sampled_from([None, 0, 1]))
def test_average_pool(data, image, ceil, count):
    kernel, attributes = data.draw(windows(len(image), dilated=False))
    for name, value in (("ceil_mode", ceil), ("count_include_pad", count)):
        if value is not None:
            attributes[name] = value
    assert_same("AveragePool", [normal(2, 3, *image)], kernel_shape=kernel, **attributes)


@pytest.mark.parametrize("c", [None, (), (3,), (1, 3), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("turned", [{}, {"transA": 1}, {"transB": 1}, {"transA": 1, "transB": 1}], ids=str)
@pytest.mark.parametrize("scaled", [{}, {"alpha": 0.5, "beta": 2.0}], ids=str)
def test_gemm(c, turned, scaled):
    a, b = (4, 2) if turned.get("transA") else (2, 4), (3, 4) if turned.get("transB") else (4, 3)
    inputs = [normal(*a), normal(*b)] + ([] if c is None else [normal(*c)])
    assert_same("Gemm", inputs, **turned, **scaled)


@pytest.mark.parametrize("opset", [17, 20, 22])
@pytest.mark.parametrize("attributes", [{}, {"epsilon": 0.5}], ids=str)
def test_batch_and_instance_norm(attributes, opset):
    scale, bias, mean, var = normal(4), normal(4), normal(4), np.abs(normal(4))
    assert_same("BatchNormalization", [normal(2, 4, 3, 3), scale, bias, mean, var], opset=opset, **attributes)
    assert_same("InstanceNormalization", [normal(2, 4, 3, 3), scale, bias], opset=opset, **attributes)


@pytest.mark.parametrize("axis", [None, 1, 2, -1, -2])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(axis, bias):
    shape = (2, 3, 5)[-1 if axis is None else axis :]
    inputs = [normal(2, 3, 5), normal(*shape)] + ([normal(*shape)] if bias else [])
    assert_same("LayerNormalization", inputs, **({} if axis is None else {"axis": axis, "epsilon": 0.1}))


@pytest.mark.parametrize(("opset", "count"), [(18, 2), (21, 6)])
def test_group_norm(opset, count):
    inputs = [normal(2, 6, 3, 3), normal(count), normal(count)]
    assert_same("GroupNormalization", inputs, opset=opset, num_groups=2)


def steps(dtype, *shape):
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("opset", [17, 19, 21])
@pytest.mark.parametrize(("axis", "shape"), [(None, ()), (None, (3,)), (0, (2,)), (-1, (4,))], ids=str)
def test_quantise_and_back(dtype, opset, axis, shape):
    named = {"opset": opset} | ({} if axis is None else {"axis": axis})
    scale, zero = np.abs(normal(*shape)).astype(np.float32) + np.float32(0.01), steps(dtype, *shape)
    x = normal(2, 3, 4) * 50 * scale.max()
    assert_same("QuantizeLinear", [x, scale, zero], **named)
    assert_same("DequantizeLinear", [steps(dtype, 2, 3, 4), scale, zero], **named)


def test_quantise_to_the_even_step_and_without_a_zero():
    halves = np.arange(-3, 600, 0.5, dtype=np.float32)
    assert_same("QuantizeLinear", [halves, np.float32(1)])
    assert_same("QuantizeLinear", [halves, np.float32(1)], opset=21, output_dtype=3)
    assert_same("DequantizeLinear", [steps(np.uint8, 7), np.float32(0.3)])
    assert_same("DequantizeLinear", [steps(np.int32, 7) // 1000, np.float32(0.3)])


@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "attributes", "words"),
    [
        ("MaxPool", [normal(1, 1, 4)], 2, {"kernel_shape": [2]}, "first output"),
        ("AveragePool", [normal(1, 1, 4)], 1, {"kernel_shape": [2], "dilations": [2]}, "dilations"),
        ("AveragePool", [normal(1, 1, 4)], 1, {"kernel_shape": [2], "auto_pad": "SAME_LOWER"}, "auto_pad"),
        ("Conv", [normal(1, 1, 4), normal(1, 1, 3)], 1, {"auto_pad": "SAME_UPPER"}, "auto_pad"),
        ("ArgMax", [normal(2, 3)], 1, {"select_last_index": 1}, "the last"),
        ("LayerNormalization", [normal(2, 3), normal(3)], 2, {}, "first output"),
        ("Dropout", [normal(2, 3)], 2, {}, "first output"),
        ("BatchNormalization", [normal(2, 3), *[normal(3)] * 4], 1, {"training_mode": 1}, "training"),
        ("QuantizeLinear", [normal(2, 4), normal(2, 1)], 1, {"block_size": 4, "opset": 21}, "blocks"),
        (
            "DequantizeLinear",
            [steps(np.int8, 2, 4), normal(2, 1)],
            1,
            {"block_size": 4, "opset": 21},
            "blocks",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_torch_has_not_is_refused(kind, inputs, outputs, attributes, words):
    model, _ = one_node(kind, inputs, outputs, **attributes)
    with pytest.raises(
        EngineError, match=rf"stages/07/full\.onnx: node 'the {kind}' \({kind}\): .*{words}"
    ) as caught:
        torch_graph(model)
    assert "backend='onnxruntime'" in str(caught.value)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_bfloat16_is_pooled(axes):
    """Numpy has none to compare with."""
    node = Node(
        {"kernel_shape": [3] * axes, "auto_pad": "NOTSET", "ceil_mode": 0}, 1, 20, torch.device("cpu")
    )
    made = make_pool(node, average=True)(torch.full((1, 2, *[6] * axes), 1.5, dtype=torch.bfloat16))
    assert made.tolist() == torch.full((1, 2, *[4] * axes), 1.5).tolist()
    assert made.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_are_kept(dtype):
    x, weight = normal(1, 2, 5, 5, dtype=dtype), normal(3, 2, 3, 3, dtype=dtype)
    for kind, inputs, attributes in (
        ("Conv", [x, weight], {"pads": [1, 1, 1, 1]}),
        ("MaxPool", [x], {"kernel_shape": [2, 2]}),
        ("AveragePool", [x], {"kernel_shape": [3, 3], "pads": [1, 0, 2, 0]}),
        ("AveragePool", [x[None]], {"kernel_shape": [1, 3, 1]}),
        ("GlobalAveragePool", [x], {}),
        ("Gemm", [x[0, 0], x[0, 1]], {"alpha": 0.5}),
        ("LayerNormalization", [x, x[0, 0, 0]], {}),
    ):
        (made,) = torch_outputs(*one_node(kind, inputs, **attributes))
        assert made.dtype == dtype, kind
