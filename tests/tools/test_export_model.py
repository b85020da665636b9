"""rnp-export --model: an untrained bundle of any backbone, and what the other commands say of it."""

from __future__ import annotations

import fnmatch
import json
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bundles import bundle_copy, edit_manifest
from commands import failure, json_report, success
from random_networks import RandomCnn
from rnp_deploy import Controller
from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.bundle.reading import read_manifest
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.checkpoint import Architecture, Checkpoint, save_checkpoint
from rnp_deploy.tools.export import main
from rnp_deploy.tools.inspect import main as inspect
from rnp_deploy.tools.run import main as run
from rnp_deploy.training.backbones import BACKBONES

PARTS = ["plain", "plain", "residual"]
FACTORY = "random_networks:RandomCnn"
MODEL = [
    "--model", FACTORY, "--model-arg", f"parts={PARTS}", "--model-arg", "channels=16",
    "--model-arg", "flatten=False", "--input-size", "32",
]  # fmt: skip
PRUNING = ["--groups", "2", "--skip", "last", "--groups-for", "parts.2.*=4", "--min-macs-share", "0.001"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A backbone, and its weights as DataParallel would have left them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = RandomCnn(PARTS, 16, False).eval()
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    state = {f"module.{name}": tensor for name, tensor in backbone.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 7}, path)
    return backbone, path


def exported(saved, tmp_path_factory, *flags):
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    arguments = [*MODEL, "--weights", saved[1], *PRUNING, *flags, "-o", path, "--verify", "1"]
    return path, success(main, arguments)


@pytest.fixture(scope="module")
def pairs(saved, tmp_path_factory):
    return exported(saved, tmp_path_factory)


@pytest.fixture(scope="module")
def outputs(saved, tmp_path_factory):
    return exported(saved, tmp_path_factory, "--branches", "outputs", "--json")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    arguments = {"widths": "8,8,8,8"}
    backbone = BACKBONES["digits-cnn"](**arguments)
    network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, 1, 16, 16), 2)
    preprocessing = Preprocessing(colour="L", size=(16, 16), mean=(0.5,), std=(0.5,))
    path = tmp_path_factory.mktemp("checkpoints") / "checkpoint"
    architecture = Architecture(name="digits-cnn", arguments=arguments)
    save_checkpoint(Checkpoint(network, architecture, preprocessing, tuple("0123456789")), path)
    return path


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("kind", ["pairs", "outputs"])
def test_the_bundle_computes_what_the_backbone_does(saved, kind, request):
    path, result = request.getfixturevalue(kind)
    images = torch.randn(3, 3, 32, 32)
    with Controller.load(path) as controller, torch.no_grad():
        got = controller.run(images.numpy())
        expected = saved[0](images).numpy()
    assert (got.options == np.array(controller.manifest.option_counts)).all()
    np.testing.assert_allclose(got.outputs, expected, atol=1e-4 * np.abs(expected).max())
    assert f"weights: {saved[1]}, section 'state_dict'" in result.stderr


def test_the_pruning_options_reach_the_bundle(pairs):
    manifest = read_manifest(pairs[0])
    assert manifest.agent_trained is False
    assert manifest.option_counts == (2, 4)
    assert [decision.conv for decision in manifest.decisions] == ["parts.0.0", "parts.2.body.0"]
    (last,) = [conv for conv in manifest.convolutions if conv.conv == "last"]
    assert (last.role, last.reason) == ("whole", "skipped, as 'last' asks")
    assert manifest.preprocessing == Preprocessing(
        colour="RGB", size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )


CHAIN = ["--model", "networks:chain", "--model-arg", "norm=True", "--input-size", "16", "--groups", "2"]


@pytest.mark.parametrize(
    ("flags", "modes"),
    [
        ([], ["pairs", "pairs", "pairs"]),
        (["--branches", "outputs"], ["outputs", "outputs", "outputs"]),
        (["--branches-for", "features.7=outputs"], ["pairs", "outputs", "pairs"]),
        (
            ["--branches-for", "features.7=pairs", "--branches-for", "f*=outputs"],
            ["outputs", "pairs", "outputs"],
        ),
        (["--branches-for", "*=outputs"], ["outputs", "outputs", "outputs"]),
    ],
)
def test_the_first_pattern_that_matches_says_the_mode(pairs, tmp_path, monkeypatch, flags, modes):
    said = []

    def export(network, path, overwrite, branches, **options):
        for decision in network.decisions:
            matching = (mode for pattern, mode in branches.items() if fnmatch.fnmatch(decision.conv, pattern))
            said.append(next(matching))
        return read_manifest(pairs[0])

    monkeypatch.setattr("rnp_deploy.exporters.export_bundle", export)
    success(main, [*CHAIN, *flags, "-o", tmp_path / "bundle"])
    assert said == modes


def test_inspect_counts_branches_and_macs_by_mode(tmp_path):
    flags = ["--branches", "outputs", "--branches-for", "features.10=pairs", "--verify", "0"]
    success(main, [*CHAIN, *flags, "-o", tmp_path / "bundle"])
    report = json_report(inspect, [tmp_path / "bundle"])
    assert [stage["branches"] for stage in report["stages"]] == [1, 2, 2, 4]
    assert [stage["mode"] for stage in report["stages"]] == ["-", "-", "outputs", "pairs"]
    assert report["modes"]["this bundle"]["branches"] == 9
    assert report["modes"]["outputs"]["branches"] == 7
    mixed, wide = (report["modes"][name]["macs_by_option"] for name in ("this bundle", "outputs"))
    assert mixed["2"] == wide["2"] == report["macs_full"]
    assert mixed["1"] < wide["1"] < report["macs_full"]
    assert "with branches=outputs it would be: 7 branches" in success(inspect, [tmp_path / "bundle"]).stdout


def test_people_are_told_that_the_agent_is_untrained(pairs):
    path, result = pairs
    assert result.stdout.startswith(f"{path}: 7 branches, ")
    assert "the agent is untrained and takes all groups everywhere" in result.stderr


def test_the_json_report_is_alone_on_stdout(outputs):
    report = json.loads(outputs[1].stdout)
    assert report["agent_trained"] is False
    assert report["branches"] == read_manifest(outputs[0]).branch_count()


def test_explain_shows_every_convolution_and_writes_nothing(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [*MODEL, *PRUNING, "--explain"]
    lines = success(main, arguments).stdout.splitlines()
    assert lines[0].split() == ["convolution", "role", "MACs", "decision", "widths", "why"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["stem", "whole"], ["parts.0.0", "prunable"], ["parts.1.0", "whole"],
        ["parts.2.body.0", "prunable"], ["parts.2.body.3", "whole"], ["last", "whole"],
    ]  # fmt: skip
    assert "8 16 24 32" in lines[4]
    roles = json_report(main, arguments)
    assert [role["conv"] for role in roles] == [line.split()[0] for line in lines[1:]]
    assert (roles[3]["widths"], roles[3]["decision"]) == ([8, 16, 24, 32], 1)
    assert os.listdir(tmp_path) == []


def test_explain_of_a_checkpoint(checkpoint):
    roles = json_report(main, [checkpoint, "--explain"])
    assert [role["role"] for role in roles] == ["whole", "prunable", "prunable", "prunable"]


def test_a_model_of_torchvision_is_explained():
    import torchvision_models  # noqa: F401 - torchvision beside a torch it was not built for

    roles = json_report(main, ["--model", "torchvision:resnet18", "--input-size", "64", "--explain"])
    assert len(roles) == 20
    assert {role["conv"] for role in roles if role["role"] == "prunable"} == {
        f"layer{i}.{j}.conv1" for i in range(1, 5) for j in range(2)
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "pass -o BUNDLE"),
        (["-o", "bundle"], "pass a CHECKPOINT, or a --model"),
        (["--explain"], "pass a CHECKPOINT, or a --model"),
        (["--weights", "w.pt", "-o", "bundle"], "pass a CHECKPOINT, or a --model"),
        (["CHECKPOINT", "-o", "bundle", "--groups", "4"], "--groups: a CHECKPOINT was trained with its own"),
        (["CHECKPOINT", "-o", "bundle", "--groups", "8", "--skip", "a"], "--groups, --skip: a CHECKPOINT"),
        (["CHECKPOINT", "-o", "bundle", "--groups-for", "a=2"], "--groups-for: a CHECKPOINT"),
        (["CHECKPOINT", "-o", "bundle", "--min-macs-share", "0"], "--min-macs-share: a CHECKPOINT"),
        (["CHECKPOINT", "--explain", "--align", "1"], "--align: a CHECKPOINT"),
        (["CHECKPOINT", "-o", "bundle", "--input-size", "32"], "--input-size: a CHECKPOINT"),
        (["CHECKPOINT", "-o", "bundle", "--weights", "w.pt"], "--weights: a CHECKPOINT"),
        (["CHECKPOINT", "--model", FACTORY, "--granularity", "block", "--explain"], "--granularity: a CHECK"),
        ([*MODEL, "-o", "bundle", "--branches", "inputs"], "'inputs' is not one of 'pairs', 'outputs'"),
        ([*MODEL, "-o", "bundle", "--groups", "1"], "1 is not in the range"),
    ],
)  # fmt: skip
def test_wrong_uses_are_refused(checkpoint, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    arguments = [str(checkpoint) if argument == "CHECKPOINT" else argument for argument in arguments]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert words in " ".join(result.stderr.split())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--branches-for", "parts.*=inputs"], "use PATTERN=pairs or PATTERN=outputs"),
        (["--branches-for", "outputs"], "--branches-for outputs: use PATTERN="),
        (["--branches-for", "parts.*="], "use PATTERN="),
        (["--groups-for", "parts.*"], "is not PATTERN=NUMBER"),
        (["--groups-for", "parts.*=1"], "greater than or equal to 2"),
        (["--model-arg", "channels"], "'channels' is not NAME=VALUE"),
        (["--model-arg", "size=3"], "cannot be built: TypeError"),
        (["--model", "random_networks:Nothing"], "'random_networks:Nothing' cannot be built"),
        (["--input-size", "big"], "is not H or HxW"),
        (["--colour", "L"], "expected input"),
        (["--skip", "*"], "no convolution of RandomCnn can be pruned"),
        (["--weights", "nowhere.pt"], "nowhere.pt is no file of weights"),
    ],
)
def test_wrong_values_are_one_line_and_nothing_on_the_disk(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    assert words in failure(main, [*MODEL, *flags, "-o", "bundle"])
    assert os.listdir(tmp_path) == []


def test_weights_that_do_not_fit_are_listed_and_may_be_ignored(saved, tmp_path):
    state = torch.load(saved[1], weights_only=True)["state_dict"]
    del state["module.fc.bias"]
    torch.save({"teacher": state}, tmp_path / "weights.pt")
    arguments = [*MODEL, "--weights", tmp_path / "weights.pt", "--explain"]
    assert "name the section" in failure(main, arguments)
    arguments += ["--weights-section", "teacher"]
    assert "does not fit RandomCnn: missing: fc.bias." in failure(main, arguments)
    assert "section 'teacher'; ignored: fc.bias" in success(main, [*arguments, "--ignore-key", "fc.*"]).stderr


def test_inspect_says_what_became_of_the_convolutions_and_that_the_agent_is_untrained(pairs):
    manifest = read_manifest(pairs[0])
    report = json_report(inspect, [pairs[0]])
    assert report["agent_trained"] is False
    assert [conv["conv"] for conv in report["convolutions"]] == [conv.conv for conv in manifest.convolutions]
    assert report["convolutions"][1]["role"] == "prunable"
    assert set(report["modes"]) == {"this bundle", "outputs"}
    out = success(inspect, [pairs[0], "--convs"]).stdout
    for words in ("parts.2.body.0", "8 16 24 32", "skipped, as 'last' asks", "the agent is UNTRAINED"):
        assert words in out
    assert "UNTRAINED" in success(inspect, [pairs[0]]).stdout


def test_run_says_that_the_agent_is_untrained(pairs, image):
    result = success(run, [pairs[0], image])
    assert "the agent is untrained: it takes all groups everywhere" in result.stderr
    assert "options 2,4, 100.0 % of the MACs" in result.stdout
    assert success(run, [pairs[0], image, "--options", "1,1"]).stderr == ""
    (row,) = json_report(run, [pairs[0], image])
    assert row["options"] == [2, 4]


def test_a_trained_agent_is_not_called_untrained(pairs, image, tmp_path):
    bundle_copy(pairs[0], tmp_path / "bundle")
    edit_manifest(tmp_path / "bundle", lambda raw: raw.update(agent_trained=True))
    assert success(run, [tmp_path / "bundle", image]).stderr == ""
    assert "UNTRAINED" not in success(inspect, [tmp_path / "bundle"]).stdout
