"""Bundles in another precision than fp32, of networks of every kind of edge."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import networks
from random_networks import RandomCnn
from rnp_deploy.bundle.manifest import Manifest, Preprocessing
from rnp_deploy.datasets import ArrayImages, ImageData
from rnp_deploy.exporters import bundle_export, export_bundle
from rnp_deploy.network import RuntimePrunedNetwork

__all__ = ["Narrow", "made", "narrow_bundle", "noise", "wrong_slice"]


class Narrow(NamedTuple):
    """A network, its bundle, and the manifest."""

    network: RuntimePrunedNetwork
    path: Path
    manifest: Manifest


def made(kind: str, groups: int = 2) -> RuntimePrunedNetwork:
    """A tiny network by name, or a random one of one part."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        if kind in networks.TINY:
            backbone, shape = networks.make(kind)
        else:
            backbone, shape = networks.randomised(RandomCnn([kind], 8, False)), (3, 10, 10)
        network = RuntimePrunedNetwork.from_backbone(
            backbone, torch.zeros(1, *shape), groups, min_macs_share=0.0
        )
    return networks.undecided(network)


def noise(network: RuntimePrunedNetwork) -> ImageData:
    """Random images in the form a network takes; the labels fit no outputs."""
    random, shape = np.random.default_rng(0), network.input_shape
    train, test = (
        ArrayImages(random.standard_normal((n, *shape)).astype(np.float32), random.integers(0, 2, n))
        for n in (24, 4)
    )
    form = Preprocessing(colour="RGB", size=shape[1:], mean=(0.0,) * 3, std=(1.0,) * 3)
    return ImageData(train, test, ("a", "b"), form, "noise")


def narrow_bundle(kind: str, precision: str, path: Path) -> Narrow:
    """Export it, on random images."""
    network = made(kind)
    data = noise(network) if precision == "int8" else None
    return Narrow(network, path, export_bundle(network, path, precision=precision, data=data, verify=1))


def wrong_slice(
    stage: Any, tensors: Any, cuts: Any, kept: Any, options: Any, cut: Any = bundle_export.cut_branch
) -> Any:
    """In the place of ``cut_branch``: what it slices begins one channel late."""
    model = cut(stage, tensors, cuts, kept, options)
    for node in model.graph:
        if node.op_type == "Slice":
            for bound in node.inputs[1:3]:
                bound.const_value.numpy()[...] += 1
    return model
