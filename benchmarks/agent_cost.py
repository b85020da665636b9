"""What the agent costs on networks of torchvision: the table of docs/results.md.

    python benchmarks/agent_cost.py [--threads 1] [NAME...]

MACs are counted; time is measured on ONNX Runtime at batch 1, 224x224, random weights and inputs: the
controller with its agent beside the controller with the same decisions given, interleaved medians. The
untrained agent takes all groups, so that both compute the whole network; the agent's time is what is
between them, and does not depend on what it decides.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np
import torch

from rnp_deploy.benchmarking.benchmark import benchmark
from rnp_deploy.benchmarking.inputs import Inputs
from rnp_deploy.benchmarking.settings import BenchSettings
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.model_sources import build_model

NAMES = ("vgg16", "resnet18", "resnet50", "mobilenet_v2")


def row(name: str, threads: int, folder: Path) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    source = build_model(f"torchvision:{name}")
    network = RuntimePrunedNetwork.from_backbone(source.module, torch.zeros(1, 3, 224, 224))
    decisions = len(network.decisions)
    agent = sum(network.agent.macs(t) for t in range(decisions))
    paths = torch.stack([network.full_options(1)[0], torch.ones(decisions, dtype=torch.int64)])
    full, cheapest = network.macs(paths).tolist()
    export_bundle(network, folder / name, verify=0)
    images = np.random.default_rng(0).standard_normal((4, 3, 224, 224)).astype(np.float32)
    settings = BenchSettings(threads=threads, duration_s=2.0, min_runs=15, pieces=False)
    report = benchmark(folder / name, Inputs("random", images, random=True), settings)
    p50 = {contender.name: contender.latency.quantiles_ms[50] for contender in report.contenders}
    dense = p50["dense network, one graph"]
    took = p50["controller"] - p50["controller, its decisions given"]
    return (
        f"| {name} | {decisions} | {full / 1e9:.2f} | {agent / 1e3:.0f} k | {agent / full:.4%} "
        f"| {agent / cheapest:.4%} | {dense:.1f} | {took:.2f} | {took / dense:.1%} "
        f"| {1000 * took / decisions:.0f} |"
    )


@click.command()
@click.argument("names", nargs=-1)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
def main(names: tuple[str, ...], threads: int) -> None:
    """Print the table."""
    click.echo(
        "| network | decisions | GMACs | agent's MACs | of the full network's | of the cheapest path's "
        "| dense, ms | agent, ms | agent ÷ dense | a decision, µs |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in names or NAMES:
            click.echo(row(name, threads, Path(folder)))


if __name__ == "__main__":
    main()
