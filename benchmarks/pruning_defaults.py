"""What the defaults of PruningSettings rest on: narrow widths, and what a decision costs.

    python benchmarks/pruning_defaults.py [--threads 1]

First, one 3x3 convolution at widths that are multiples of 8 and at those between: time for each
width ÷ time at the next multiple of 8. Second, for two networks of torchvision, by granularity: what
the controller costs beyond the dense graph while it takes all groups, per decision, as a share of the
dense graph's time. A convolution whose option changes a smaller share of the MACs cannot pay. Random
weights and inputs; medians of interleaved runs on ONNX Runtime.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from rnp_deploy.benchmarking.benchmark import benchmark
from rnp_deploy.benchmarking.inputs import Inputs
from rnp_deploy.benchmarking.settings import BenchSettings
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.model_sources import build_model

_SIDE, _CHANNELS, _ROUNDS = 28, 64, 300
_WIDTHS = (4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 52, 56, 60, 64)


def convolution(width: int, threads: int) -> ort.InferenceSession:
    """A 3x3 convolution from 64 to ``width`` channels, and one back, at 28x28."""
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.standard_normal((width, _CHANNELS, 3, 3)).astype(np.float32),
        "b": rng.standard_normal((_CHANNELS, width, 3, 3)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "a"], ["y"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["y"], ["z"]),
            helper.make_node("Conv", ["z", "b"], ["out"], pads=[1, 1, 1, 1]),
        ],
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, _CHANNELS, _SIDE, _SIDE])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def time_widths(threads: int) -> dict[int, float]:
    """Width → median milliseconds."""
    sessions = {width: convolution(width, threads) for width in _WIDTHS}
    feeds = {"x": np.random.default_rng(1).standard_normal((1, _CHANNELS, _SIDE, _SIDE)).astype(np.float32)}
    times: dict[int, list[float]] = {width: [] for width in _WIDTHS}
    for _ in range(_ROUNDS):
        for width, session in sessions.items():
            before = time.perf_counter_ns()
            session.run(None, feeds)
            times[width].append((time.perf_counter_ns() - before) / 1e6)
    return {width: float(np.median(values)) for width, values in times.items()}


def decision_cost(name: str, granularity: str, threads: int, folder: Path) -> str:
    """One line of the second table."""
    source = build_model(f"torchvision:{name}")
    network = RuntimePrunedNetwork.from_backbone(
        source.module, torch.zeros(1, 3, 224, 224), granularity=granularity, min_macs_share=0.0
    )
    export_bundle(network, folder / f"{name}-{granularity}", verify=0)
    images = np.random.default_rng(0).standard_normal((4, 3, 224, 224)).astype(np.float32)
    settings = BenchSettings(threads=threads, duration_s=1.0, pieces=False)
    inputs = Inputs("random", images, random=True)
    report = benchmark(folder / f"{name}-{granularity}", inputs, settings)
    p50 = {contender.name: contender.latency.quantiles_ms[50] for contender in report.contenders}
    dense, controller = p50["dense network, one graph"], p50["controller"]
    held = p50[f"controller, option {network.groups} held"]
    cheapest = p50["controller, option 1 held"]
    decisions = len(network.decisions)
    return (
        f"| {name} | {granularity} | {decisions} | {dense:.2f} | {held:.2f} | {controller:.2f} | {cheapest:.2f} "
        f"| {1000 * (controller - dense) / decisions:.0f} | {(controller - dense) / decisions / dense:.2%} |"
    )


@click.command()
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(threads: int) -> None:
    """Print both tables."""
    times = time_widths(threads)
    click.echo("| width | ms | time ÷ that of the next multiple of 8 |")
    click.echo("|---|---|---|")
    for width, value in times.items():
        aligned = times.get(-(-width // 8) * 8, float("nan"))
        click.echo(f"| {width} | {value:.3f} | {value / aligned:.2f} |")
    click.echo(
        "\n| network | granularity | decisions | dense, ms | all groups held, ms | with agent, ms "
        "| option 1 held, ms | a decision, µs | a decision ÷ dense |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mobilenet_v2", "resnet50"):
            for granularity in ("conv", "block"):
                click.echo(decision_cost(name, granularity, threads, Path(folder)))


if __name__ == "__main__":
    main()
