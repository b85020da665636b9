"""Checkpoints: what is saved comes back, and nothing else is believed."""

from __future__ import annotations

import json

import pytest
import torch

import networks
from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.errors import CheckpointError, OutputExistsError
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

PREPROCESSING = Preprocessing(colour="RGB", size=(16, 16), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))


@pytest.fixture
def saved(tmp_path):
    backbone, shape = networks.make("chain with norm", seed=3)
    network = RuntimePrunedNetwork.from_backbone(
        backbone, torch.zeros(1, *shape), penalty=0.07, state_size=12
    )
    networks.undecided(network)
    path = tmp_path / "checkpoint"
    save_checkpoint(Checkpoint(network, preprocessing=PREPROCESSING, classes=("a", "b")), path)
    return network, path


def test_round_trip_into_another_backbone_object(saved):
    network, path = saved
    loaded = load_checkpoint(path, networks.make("chain with norm", seed=99)[0])
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        for got, expected in zip(loaded.network(images), network(images), strict=True):
            assert torch.equal(got, expected)
    assert [d.order for d in loaded.network.decisions] == [d.order for d in network.decisions]
    assert loaded.network.agent.penalty == 0.07
    assert loaded.network.agent.trained
    assert loaded.network.settings == network.settings
    assert loaded.preprocessing == PREPROCESSING
    assert loaded.classes == ("a", "b")


def test_an_existing_checkpoint_is_not_overwritten_by_default(saved):
    network, path = saved
    with pytest.raises(OutputExistsError, match="overwrite"):
        save_checkpoint(Checkpoint(network), path)
    save_checkpoint(Checkpoint(network), path, overwrite=True)
    assert load_checkpoint(path, networks.make("chain with norm")[0]).classes is None


def test_own_backbones_have_to_be_passed(saved):
    with pytest.raises(CheckpointError, match="backbone=") as caught:
        load_checkpoint(saved[1])
    assert "your own" in str(caught.value)


@pytest.mark.parametrize("other", ["chain", "basic residual", "separable"])
def test_another_backbone_does_not_fit(saved, other):
    with pytest.raises(CheckpointError, match=r"fit|rebuilt|other"):
        load_checkpoint(saved[1], networks.make(other)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": "2.0"}, "format_version"),
        ({"kind": "something else"}, "kind"),
        ({"architecture": {"name": "os.system", "arguments": {}}}, "os.system"),
        ({"architecture": {"name": "digits-cnn", "arguments": {"widths": "x"}}}, "cannot be built"),
        ({"weights_sha256": "0" * 64}, "model.safetensors"),
        ({"surprise": 1}, "surprise"),
        ({"pruning": {"groups": "4"}}, "pruning.groups"),
    ],
)
def test_a_changed_config_is_refused(saved, change, words):
    _, path = saved
    config = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps({**config, **change}))
    backbone = None if "architecture" in change else networks.make("chain with norm")[0]
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, backbone)
    assert words in str(caught.value)
