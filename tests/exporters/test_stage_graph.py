"""What exported graphs are made of."""

from __future__ import annotations

import onnx
import pytest

#: Operators that ONNX Runtime has for CUDA, by its OperatorKernels.md; of those that bundles have.
ON_CUDA = {
    "Abs", "Add", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "Div", "Erf", "Expand", "Flatten", "Gather",
    "Gemm", "GlobalAveragePool", "HardSigmoid", "LayerNormalization", "Log", "MatMul", "MaxPool", "Mul", "PRelu", "Pad", "Pow",
    "ReduceMean", "Relu", "Reshape", "Shape", "Sigmoid", "Sign", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub",
    "Tanh", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


@pytest.mark.parametrize("name", ["chain", "basic residual", "separable"])
def test_every_operator_is_one_that_onnx_runtime_has_on_cuda(name, exported):
    graphs = [onnx.load_model(file, load_external_data=False) for file in exported(name).path.rglob("*.onnx")]
    kinds = {node.op_type for model in graphs for node in model.graph.node}
    assert "ArgMax" in kinds
    assert kinds - ON_CUDA == set()
