"""Networks whose agent does all its work but decides what is wanted: material for static_rivals.py.

    PYTHONPATH=tests/support python benchmarks/scripted_networks.py NAME --work DIR

Random weights, 224x224. The encoders' weights are 0 and the recurrent cell hands its input on, so that its
state is tanh of the encoder's bias, whatever the image; the decoder's Q-values are concave in the option.
Option j then wins at decision t where the penalty lies between the worth of group j and that of group j + 1,
and every matrix product is computed as in a trained agent. DIR/NAME gets:

    bundle/        with a calibration that counts options between 0.1 and 0.5 of the MACs
    engines/       its engine set for this machine
    static-J.onnx  the static graph of option J everywhere, weights in the bundle
    if.onnx        the whole bundle as one file, agent inside; if-fed.onnx: the options are an input
    worths.json    [t][i]: what group i + 2 is worth at decision t

What is there is kept: delete DIR after a change to the exporter or the builder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import networks
from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.bundle.reading import open_bundle
from rnp_deploy.engines.ort_build import build_engine_set
from rnp_deploy.engines.single_file import single_file_from_bundle
from rnp_deploy.engines.static_graph import static_graph
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.agent import Agent

#: What groups 2, 3 and 4 are worth where every decision is alike.
WORTHS = (3.0, 2.0, 1.0)
#: The decoder's slope in the state; how far worths are spread, at most to either side.
SLOPE, SPREAD = 2.0, 1.5
#: Between these shares of the full network's MACs lie the paths that the calibration counts.
COMMON_SHARES = (0.1, 0.5)


@dataclass(frozen=True)
class Recipe:
    """A network to make: its architecture, how it is pruned, and whether decisions differ in worth."""

    architecture: str
    granularity: str = "conv"
    mixed: bool = False


RECIPES = {
    "vgg16": Recipe("vgg16"),
    "vgg16-mixed": Recipe("vgg16", mixed=True),
    "resnet50": Recipe("resnet50"),
    "resnet50-block": Recipe("resnet50", granularity="block"),
}


def backbone(architecture: str) -> nn.Module:
    """VGG-16's convolutions under global pooling and one linear layer, or ResNet-50."""
    torch.manual_seed(0)
    if architecture == "resnet50":
        return networks.randomised(networks.resnet50())
    network = networks.Vgg(networks.VGG16, nn.Linear(512, 1000), norm=False, size=1)
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):  # so that activations neither vanish nor grow
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network.eval()


def scripted(agent: Agent, shifts: NDArray[np.float64]) -> list[list[float]]:
    """Set an agent's parameters so that it decides by the penalty alone.

    Args:
        agent: Changed; counts as trained.
        shifts: ``[T]``, by how much all groups of a decision are worth more, between -SLOPE and SLOPE.

    Returns:
        ``[t][i]``: what group i + 2 is worth at decision t.
    """
    update = slice(agent.state_size, 2 * agent.state_size)  # gates: reset, update, new
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.zero_()
        for encoder, shift in zip(agent.encoders, shifts.tolist(), strict=True):
            encoder.bias[0] = np.arctanh(shift / SLOPE)
        agent.cell.bias_ih[update] = -30.0
        agent.cell.weight_ih[2 * agent.state_size, 0] = 1.0
        agent.decoder.weight[:, 0] = SLOPE * torch.arange(len(WORTHS) + 1)
        agent.decoder.bias.copy_(torch.tensor([0.0, *np.cumsum(WORTHS)]))
    agent.trained = True
    return [[worth + shift for worth in WORTHS] for shift in shifts.tolist()]


def calibration(network: RuntimePrunedNetwork, worths: list[list[float]]) -> Calibration:
    """Options counted over the paths of middling cost that a rising penalty goes through; accuracies are 0."""
    prices = np.unique(worths)
    middles = (prices[1:] + prices[:-1]) / 2
    paths = 1 + (np.asarray(worths) > middles[:, None, None]).sum(axis=2)
    macs = network.macs(torch.from_numpy(paths)).numpy()
    shares = macs / network.macs(network.full_options(1)).item()
    common = (shares >= COMMON_SHARES[0]) & (shares <= COMMON_SHARES[1])
    counts = tuple(tuple(int((column == j).sum()) for j in range(1, 5)) for column in paths[common].T)
    point = CalibrationPoint(
        penalty=network.agent.penalty,
        accuracy=0.0,
        macs_share=float(shares[common].mean()),
        option_counts=counts,
    )
    return Calibration(
        data="none: scripted decisions",
        samples=int(common.sum()),
        backbone_accuracy=0.0,
        full_accuracy=0.0,
        points=(point,),
    )


def make_bundle(recipe: Recipe, folder: Path) -> None:
    """Export a network with its scripted agent."""
    network = RuntimePrunedNetwork.from_backbone(
        backbone(recipe.architecture),
        torch.zeros(1, 3, 224, 224),
        granularity=recipe.granularity,
        penalty_range=(-1.0, 6.0),
    )
    count = len(network.decisions)
    shifts = np.random.default_rng(0).uniform(-SPREAD, SPREAD, count) if recipe.mixed else np.zeros(count)
    worths = scripted(network.agent, shifts)
    counted = calibration(network, worths)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "worths.json").write_text(json.dumps(worths), encoding="utf-8")
    export_bundle(network, folder / "bundle", verify=0, calibration=counted)


@click.command()
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--work", type=click.Path(path_type=Path), required=True)
def main(name: str, work: Path) -> None:
    """Make what is not there yet."""
    folder = work / name
    if not (folder / "bundle").exists():
        make_bundle(RECIPES[name], folder)
    bundle = open_bundle(folder / "bundle")
    if not (folder / "engines").exists():
        build_engine_set(bundle, folder / "engines", verify=1)
    for j in range(1, bundle.manifest.groups + 1):
        graph = static_graph(bundle, bundle.manifest.uniform_options(j))
        (folder / f"static-{j}.onnx").write_bytes(graph)
    for file, agent in (("if.onnx", True), ("if-fed.onnx", False)):
        if not (folder / file).exists():
            model = single_file_from_bundle(bundle, agent=agent)
            (folder / file).write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
