"""Small material for TensorRT: whether TensorRT-RTX is here, a bundle of four engines, hand-made pieces."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

import networks
from rnp_deploy.engines import trt_library
from rnp_deploy.engines.cuda_driver import CudaDevice
from rnp_deploy.engines.trt_graph import Edge, PieceGraph
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork

__all__ = ["GPU", "conv_piece", "export_four", "needs_rtx", "use_tensorrt"]

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None
    and importlib.util.find_spec("tensorrt_rtx") is None,
    reason="TensorRT-RTX is not installed (extra rtx: x86-64 alone)",
)
GPU = CudaDevice("Orin", "8.7", 16, 8 * 2**30, "12.6")
_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}


def export_four(path: Path) -> Path:
    """A bundle of four pieces: a stem, one agent step, and the rest for two options."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = nn.Sequential(*layers, *head).eval()
        images = torch.zeros(1, 3, 8, 8)
        network = RuntimePrunedNetwork.from_backbone(backbone, images, groups=2, min_macs_share=0.0)
    networks.undecided(network)
    export_bundle(network, path, verify=0)
    return path


def conv_piece(dtype: str = "float16", extra: str | None = None, channels: int = 12) -> PieceGraph:
    """x → convolution → (a node of type ``extra``) → y, channels last where it is of half precision."""
    kind = _TYPES[dtype]
    values = np.random.default_rng(0).standard_normal((channels, channels, 3, 3)).ravel()
    weight = helper.make_tensor("w", kind, (channels, channels, 3, 3), values)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y" if extra is None else "c"], "conv", pads=[1] * 4)]
    if extra is not None:
        nodes.append(helper.make_node(extra, ["c"], ["y"], "the extra one"))
    infos = [helper.make_tensor_value_info(name, _TYPES[dtype], ["N", channels, 6, 6]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "piece", infos[:1], infos[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    edges = [Edge(name, (channels, 6, 6), dtype, channels_last=dtype != "float32") for name in ("x", "y")]
    return PieceGraph(
        "stage 7, options 2 (s/7.onnx)",
        model.SerializeToString(),
        (edges[0],),
        (edges[1],),
        frozenset({dtype}),
    )


def use_tensorrt(monkeypatch: pytest.MonkeyPatch, module: Any) -> Any:
    """Make a stand-in what ``import tensorrt`` gives; returns it as loaded."""
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return trt_library.load_tensorrt("tensorrt")
