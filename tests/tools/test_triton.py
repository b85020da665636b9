"""rnp-triton: a model of a Triton repository from whatever can be run, or one line and nothing on the disk."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from commands import failure, json_report, success
from rnp_deploy.bundle import open_bundle
from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.exporters import triton_repository
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.checkpoint import Architecture, Checkpoint, save_checkpoint
from rnp_deploy.tools.triton import main
from rnp_deploy.training.backbones import BACKBONES


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def test_a_bundle_becomes_a_model_and_the_report_names_it(exported, repository):
    report = json_report(main, [exported("chain").path, "-o", repository / "chain"])
    size = sum(
        file.stat().st_size for file in (repository / "chain" / "1" / "bundle").rglob("*") if file.is_file()
    )
    assert report == {
        "name": "chain",
        "path": str(repository / "chain"),
        "files": ["1/model.py", "config.pbtxt"],
        "kind": "bundle",
        "bytes": size,
        "max_batch": 8,
        "device": "cpu",
    }
    line = success(main, [exported("chain").path, "-o", repository / "chain", "--overwrite"]).stdout
    assert line.endswith(f"tritonserver --model-repository {repository}\n")
    assert "model 'chain' of a bundle" in line


def test_every_option_reaches_the_configuration(engine_set, repository):
    options = (
        "--max-batch 16 --max-delay-ms 0.5 --preferred-batch 4 --preferred-batch 12 --instances 2 --threads 3"
    )
    options += " --backend onnxruntime --device cpu --preload all --policy serial --memory-budget 2"
    report = json_report(main, [engine_set("chain"), "-o", repository / "chain", *options.split()])
    assert report["kind"] == "engine set"
    text = (repository / "chain" / "config.pbtxt").read_text()
    words = ["max_batch_size: 16", "microseconds: 500 ", "[ 4, 12 ]", "KIND_CPU count: 2"]
    parameters = {"backend": "onnxruntime", "device": "cpu", "policy": "serial", "preload": "all"}
    parameters |= {"threads": "3", "memory_budget_bytes": str(2 * 2**20)}
    words += [f'key: "{key}" value {{ string_value: "{value}" }}' for key, value in parameters.items()]
    assert not [word for word in words if word not in text]


def test_a_checkpoint_is_exported(repository, tmp_path):
    architecture = Architecture(name="digits-cnn", arguments={"widths": "8,8,8,8"})
    backbone = BACKBONES[architecture.name](**architecture.arguments)
    network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, 1, 16, 16), 2)
    form = Preprocessing(colour="L", size=(16, 16), mean=(0.5,), std=(0.5,))
    save_checkpoint(Checkpoint(network, architecture, form, tuple("0123456789")), tmp_path / "checkpoint")
    report = json_report(main, [tmp_path / "checkpoint", "-o", repository / "digits"])
    assert report["kind"] == "bundle"
    manifest = open_bundle(repository / "digits" / "1" / "bundle").manifest
    assert manifest.verification.samples == 2
    assert manifest.preprocessing == form
    assert (repository / "digits" / "labels.txt").read_text().split() == list("0123456789")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "-o", "models/chain"], "nothing does not exist"),
        (["{bundle}", "-o", "models/a b"], "cannot be the name of a model"),
        (["{bundle}", "-o", "none/chain"], "does not exist; create it first"),
        (["{bundle}", "-o", "models/chain", "--preferred-batch", "9"], "above the largest, 8"),
    ],
)
def test_a_refusal_is_one_line(arguments, words, exported, repository, monkeypatch):
    monkeypatch.chdir(repository.parent)
    bundle = str(exported("chain").path)
    assert words in failure(main, [argument.replace("{bundle}", bundle) for argument in arguments])
    assert not list(repository.iterdir())


def test_an_output_is_refused_before_a_checkpoint_is_read(repository, tmp_path, monkeypatch):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "checkpoint.json").write_text("{}")
    (repository / "chain").mkdir()
    monkeypatch.setattr(
        "rnp_deploy.network.checkpoint.load_checkpoint", lambda _: pytest.fail("work was done")
    )
    assert "--overwrite" in failure(main, [tmp_path / "checkpoint", "-o", repository / "chain"])


@pytest.mark.parametrize(
    "arguments", [[], ["a"], ["a", "-o", "b", "--max-batch", "0"], ["a", "-o", "b", "--policy", "any"]]
)
def test_wrong_usage_is_exit_code_2(arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Usage: rnp-triton" in result.stderr


def test_a_bundle_needs_no_torch(exported, repository):
    script = (
        "import sys\nsys.modules['torch'] = None\nsys.modules['onnxruntime'] = None\n"
        "from rnp_deploy.tools.triton import main\n"
        f"main([{str(exported('chain').path)!r}, '-o', {str(repository / 'chain')!r}])"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (repository / "chain" / "config.pbtxt").is_file()


def test_choices_are_those_of_the_controller():
    from rnp_deploy import controller
    from rnp_deploy.engines import backends

    choices = {option.name: option.type.choices for option in main.params if hasattr(option.type, "choices")}
    assert tuple(choices["backend"]) == backends.BACKENDS
    assert tuple(choices["device"]) == backends.DEVICES
    assert tuple(choices["policy"]) == controller._POLICIES
    assert set(choices) == {"backend", "device", "policy", "preload"}
    fields = set(triton_repository.TritonSettings.__dataclass_fields__)
    given = {option.name for option in main.params} - {"source", "output", "overwrite", "as_json"}
    assert {name.replace("memory_budget", "memory_budget_bytes") for name in given} == fields
