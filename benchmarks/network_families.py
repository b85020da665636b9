"""How much of each torchvision family can be pruned: the table of docs/your-network.md.

    python benchmarks/network_families.py [NAME...]

Networks have random weights and their own image size; nothing is downloaded. Columns: decisions at
the default settings and with one a block; the share of the convolutions' multiply-accumulates in
prunable convolutions and their followers; in layers whose cost depends on an option, readers
included; and what the cheapest path costs of the whole network.
"""

from __future__ import annotations

import sys

import click
import torch

from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.model_sources import build_model
from rnp_deploy.tools.model_options import preprocessing_from, torch_example

NAMES = (
    "alexnet", "vgg16", "vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2",
    "squeezenet1_1", "densenet121", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_large",
    "mnasnet1_0", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf",
    "shufflenet_v2_x1_0", "convnext_tiny",
)  # fmt: skip


def row(name: str) -> str:
    """One line of the table."""
    source = build_model(f"torchvision:{name}")
    example = torch_example(preprocessing_from(source.preprocessing, None, None, None, None))
    network = RuntimePrunedNetwork.from_backbone(source.module, example)
    blocks = RuntimePrunedNetwork.from_backbone(source.module, example, granularity="block")
    roles = network.explain()
    total = sum(role.macs for role in roles)
    pruned = sum(role.macs for role in roles if role.role != "whole")
    cut = {c.name.rpartition(".")[0] for c in network.analysis.cuts if c.name.endswith(".weight")}
    depends = sum(role.macs for role in roles if role.conv in cut)
    full, cheapest = network.macs(
        torch.stack([network.full_options(1)[0], torch.ones(len(network.decisions)).long()])
    )
    return (
        f"| {name} | {int(full) / 1e9:.2f} | {len(network.decisions)} | {len(blocks.decisions)} "
        f"| {pruned / total:.0%} | {depends / total:.0%} | {int(cheapest) / int(full):.0%} |"
    )


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    click.echo(
        "| network | GMACs | decisions | a block each | prunable | depends on options | cheapest path |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    for name in sys.argv[1:] or NAMES:
        click.echo(row(name))


if __name__ == "__main__":
    main()
