"""Networks of random weights whose agent is drawn at random: what they decide depends on image and price, and means nothing.

    PYTHONPATH=tests/support python benchmarks/random_agents.py vgg16 resnet18 --work DIR

Material for timing: DIR/NAME gets `bundle/`, and `engines/`, its engine set for this machine. VGG-16 is its 13 convolutions
under global pooling and one linear layer; ResNet-18 is torchvision's.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click
import torch

from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.ort_build import build_engine_set
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.model_sources import build_model

__all__ = ["export_random"]

_NAMES = ("vgg16", "resnet18")
#: What a group is worth, more or less by what the agent sees.
_WORTH = 0.3


def export_random(name: str, size: int, folder: Path) -> Path:
    """Export a network at ``size`` by ``size``; the path of the bundle."""
    torch.manual_seed(0)
    if name == "vgg16":
        from scripted_networks import backbone

        module = backbone(name)
    else:
        with suppress(
            ModuleNotFoundError
        ):  # of tests/support: for a torchvision that was built for another torch
            import torchvision_models  # noqa: F401
        module = build_model(f"torchvision:{name}").module
    network = RuntimePrunedNetwork.from_backbone(module, torch.zeros(1, 3, size, size))
    decoder = network.agent.decoder
    groups = torch.arange(decoder.out_features, dtype=torch.float32)
    torch.manual_seed(
        3
    )  # ResNet-18's cost then falls with the price all the way, from 91 % of the MACs to 30 %
    with torch.no_grad():
        decoder.weight.copy_(torch.outer(groups, _WORTH * torch.randn(decoder.in_features)))
        decoder.bias.copy_(_WORTH * groups)
    network.agent.trained = True
    export_bundle(network, folder / "bundle", verify=0)
    return folder / "bundle"


@click.command()
@click.argument("names", nargs=-1, required=True, type=click.Choice(_NAMES))
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Where they are put.")
@click.option("--size", type=int, default=224, show_default=True, help="Pixels of a side.")
def main(names: tuple[str, ...], work: Path, size: int) -> None:
    """Export NAMES and build their engine sets."""
    for name in names:
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        build_engine_set(open_bundle(export_random(name, size, folder)), folder / "engines")
        click.echo(folder)


if __name__ == "__main__":
    main()
