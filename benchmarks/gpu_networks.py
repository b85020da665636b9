"""What gpu_results.py measures, made beforehand on a machine with the exporter.

    PYTHONPATH=tests/support python benchmarks/gpu_networks.py DIR [--small]

DIR gets, for each network, ``bundle/`` and ``reference.npz``: images, the outputs of the masked torch network in
fp32 at the options ``[case, N, T]`` of each case, and for the cases named by a penalty what the agent decides there.

    vgg16      VGG-16's 13 convolutions, global pooling, one linear layer; fp16; a scripted agent (scripted_networks.py)
    resnet18   fp32, opset 17, two options a decision, a random agent that decides by what it sees

One penalty between the worths of two groups makes the agent decide one option everywhere; as it passes the
worths of a group, one decision after another changes, so that one bundle serves every operating point.
``--small`` makes tiny ones of both.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import networks
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork
from scripted_networks import WORTHS, scripted

#: How far the worths of a group are spread: less than half of what lies between two groups.
SPREAD = 0.45
IMAGES = 4
SMALL_VGG = [8, 16, "M", 16, 32, "M"]


def vgg(plan: list[int | str], size: int) -> tuple[nn.Module, int]:
    """Convolutions under global pooling and one linear layer, and the images' size."""
    convs = [int(width) for width in plan if width != "M"]
    network = networks.Vgg(plan, nn.Linear(convs[-1], 1000), norm=False, size=1)
    for layer in network.features:
        if isinstance(layer, nn.Conv2d):  # so that activations neither vanish nor grow
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network.eval(), size


def resnet(depths: list[int], width: int, size: int) -> tuple[nn.Module, int]:
    """A ResNet of basic blocks, and the images' size."""
    return networks.randomised(networks.ResNet(networks.Basic, depths, width, 1000)), size


def traced(backbone: nn.Module, size: int, **settings: object) -> RuntimePrunedNetwork:
    """Pruned at run time."""
    example = torch.zeros(1, 3, size, size)
    return RuntimePrunedNetwork.from_backbone(backbone, example, penalty_range=(-1.0, 6.0), **settings)


def some_images(network: RuntimePrunedNetwork) -> Tensor:
    """``[N, C, H, W]``, so unlike each other that an agent tells them apart."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, *network.input_shape, generator=generator)
    scales = 2.0 ** torch.linspace(-2, 1, IMAGES).reshape(-1, 1, 1, 1)
    return images * scales + torch.randn(IMAGES, network.input_shape[0], 1, 1, generator=generator)


def telling_penalties(network: RuntimePrunedNetwork) -> list[float]:
    """The two at which most decisions differ from image to image."""
    images = some_images(network)

    def differing(penalty: float) -> int:
        with torch.no_grad():
            options = network(images, penalty)[1]
        return int((options != options[0]).any(dim=0).sum())

    return sorted((p / 10 for p in range(-10, 11)), key=differing)[-2:]


def save_reference(
    network: RuntimePrunedNetwork, folder: Path, images: Tensor, penalties: list[float]
) -> None:
    """Outputs at every option everywhere, at random options, and where the agent decides at each penalty."""
    counts = torch.tensor([len(decision.widths) for decision in network.decisions])
    cases = {
        f"option {j}": torch.minimum(counts, torch.tensor(j)).expand(IMAGES, -1)
        for j in range(1, max(counts) + 1)
    }
    cases["random options"] = network.random_options(IMAGES, torch.Generator().manual_seed(2))
    with torch.no_grad():
        for penalty in penalties:
            cases[f"penalty {penalty}"] = network(images, penalty)[1]
        outputs = [network.run(images, options) for options in cases.values()]
    np.savez(
        folder / "reference.npz",
        images=images.numpy(),
        names=np.array(list(cases)),
        options=torch.stack(list(cases.values())).numpy(),
        outputs=torch.stack(outputs).numpy(),
    )


def make_vgg(folder: Path, *, small: bool) -> None:
    """The bundle that is timed."""
    backbone, size = vgg(SMALL_VGG, 32) if small else vgg(networks.VGG16, 224)
    network = traced(backbone, size)
    shifts: NDArray[np.float64] = np.random.default_rng(0).uniform(-SPREAD, SPREAD, len(network.decisions))
    worths = scripted(network.agent, shifts)
    (folder / "worths.json").write_text(json.dumps(worths), encoding="utf-8")
    images = torch.randn(IMAGES, *network.input_shape, generator=torch.Generator().manual_seed(1))
    save_reference(network, folder, images, [worth + 0.5 for worth in (0.0, *reversed(WORTHS))])
    export_bundle(network, folder / "bundle", precision="fp16", verify=1)


def make_resnet(folder: Path, *, small: bool) -> None:
    """The bundle that the oldest TensorRT reads."""
    backbone, size = resnet([1, 1], 8, 32) if small else resnet([2, 2, 2, 2], 64, 224)
    network = networks.undecided(traced(backbone, size, groups=2))
    save_reference(network, folder, some_images(network), telling_penalties(network))
    export_bundle(network, folder / "bundle", opset=17, verify=0)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--small", is_flag=True, help="Tiny networks.")
def main(folder: Path, small: bool) -> None:
    """Write both networks into FOLDER, anew."""
    torch.manual_seed(0)
    for name, make in (("vgg16", make_vgg), ("resnet18", make_resnet)):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
        make(folder / name, small=small)
        click.echo(
            f"{name}: {sum(f.stat().st_size for f in (folder / name).rglob('*') if f.is_file()) / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
