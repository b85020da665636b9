"""A user's own network: backbone → checkpoint → bundle → controller, nothing lost on the way."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import networks
from rnp_deploy import Controller
from rnp_deploy.bundle.calibration import Calibration, CalibrationPoint
from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from rnp_deploy.training import train
from tiny_training import TINY, tiny_backbone, tiny_data


def test_checkpoint_to_bundle_keeps_everything(tmp_path):
    backbone, shape = networks.make("pre-activation residual")
    network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape), penalty=0.2)
    networks.undecided(network)
    point = CalibrationPoint(penalty=0.2, accuracy=0.9, macs_share=0.3, option_counts=((1, 2, 3, 4),) * 2)
    calibration = Calibration(
        data="own", samples=10, backbone_accuracy=0.95, full_accuracy=0.94, points=(point,)
    )
    preprocessing = Preprocessing(colour="RGB", size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    classes = ("one", "two", "three", "four", "five")
    save_checkpoint(Checkpoint(network, None, preprocessing, classes, calibration), tmp_path / "checkpoint")
    loaded = load_checkpoint(tmp_path / "checkpoint", networks.make("pre-activation residual", seed=5)[0])
    export_bundle(
        loaded.network, tmp_path / "bundle",
        calibration=loaded.calibration, preprocessing=loaded.preprocessing, classes=loaded.classes,
    )  # fmt: skip
    images = torch.randn(4, *shape)
    with Controller.load(tmp_path / "bundle") as controller, torch.no_grad():
        outputs, options = network(images)
        result = controller.run(images.numpy())
        manifest = controller.manifest
    assert (result.options == options.numpy()).all()
    assert np.abs(result.outputs - outputs.numpy()).max() <= 1e-4 * outputs.abs().max()
    assert manifest.calibration == calibration
    assert manifest.preprocessing == preprocessing
    assert manifest.classes == classes
    assert manifest.agent.penalty == 0.2


def test_a_head_behind_a_fully_pruned_chain_survives_any_group_count(tmp_path):
    backbone, shape = networks.make("chain")
    for groups in (2, 8):
        network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape), groups)
        path = tmp_path / f"groups-{groups}"
        export_bundle(network, path)
        options = torch.randint(1, groups + 1, (5, 3))
        images = torch.randn(5, *shape)
        with Controller.load(path) as controller, torch.no_grad():
            got = controller.run(images.numpy(), options=options.numpy()).outputs
            expected = network.run(images, options).numpy()
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_budget_of_macs_is_kept_on_the_calibration_images(tmp_path):
    """Trained, calibrated, exported, run: every calibrated share is what its target costs."""
    data = tiny_data()
    config = dataclasses.replace(TINY, agent_minibatches=40)
    result = train(tiny_backbone("4,8,8,8"), data, config)
    export_bundle(result.network, tmp_path / "bundle", verify=0, calibration=result.calibration)
    images, _ = data.test.read(np.arange(len(data.test)))
    points = result.calibration.points
    assert points[0].macs_share > points[-1].macs_share + 0.1
    with Controller.load(tmp_path / "bundle") as controller:
        for point in points:
            macs = controller.run(images, target_macs=point.macs_share).macs
            assert macs.mean() / controller.manifest.macs == pytest.approx(point.macs_share, abs=0.01)
