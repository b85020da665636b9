"""rnp-export: a checkpoint becomes a bundle, or one line and nothing on the disk."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from commands import failure, success
from networks import undecided
from rnp_deploy import Controller
from rnp_deploy.bundle.manifest import Preprocessing, Verification
from rnp_deploy.bundle.reading import read_manifest
from rnp_deploy.engines.ort import engine_from_onnx
from rnp_deploy.exporters import SingleFile
from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.checkpoint import Architecture, Checkpoint, save_checkpoint
from rnp_deploy.tools.export import main
from rnp_deploy.tools.inspect import main as inspect
from rnp_deploy.training.backbones import BACKBONES

ARCHITECTURE = Architecture(name="digits-cnn", arguments={"widths": "8,8,8,8"})
PREPROCESSING = Preprocessing(colour="L", size=(16, 16), mean=(0.5,), std=(0.5,))
CLASSES = tuple("0123456789")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network of random weights, and its checkpoint."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = BACKBONES[ARCHITECTURE.name](**ARCHITECTURE.arguments)
        network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, 1, 16, 16), 2, penalty=0.03)
    undecided(network)
    path = tmp_path_factory.mktemp("checkpoints") / "checkpoint"
    save_checkpoint(Checkpoint(network, ARCHITECTURE, PREPROCESSING, CLASSES), path)
    return network, path


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(saved[1], tmp_path / "checkpoint")


@pytest.fixture(scope="module")
def bundle(saved, tmp_path_factory):
    """The bundle, and what the command said."""
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    return path, success(main, [saved[1], "-o", path, "--verify", "1", "--json"])


def test_the_bundle_computes_what_the_checkpoint_does(saved, bundle):
    network, images = saved[0], torch.randn(4, 1, 16, 16)
    with Controller.load(bundle[0]) as controller, torch.no_grad():
        manifest, result = controller.manifest, controller.run(images.numpy())
        expected, options = network(images)
    assert result.options.tolist() == options.tolist()
    np.testing.assert_allclose(result.outputs, expected.numpy(), atol=1e-4 * float(expected.abs().max()))
    assert (manifest.preprocessing, manifest.classes) == (PREPROCESSING, CLASSES)
    assert manifest.agent.penalty == pytest.approx(0.03)


def test_the_json_report_is_alone_on_stdout_and_progress_on_stderr(bundle):
    path, result = bundle
    report = json.loads(result.stdout)
    assert report["bundle"] == str(path)
    assert report["branches"] == 1 + 2 + 4 + 4
    assert report["bytes"] == sum(
        file.stat().st_size for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"
    )
    assert report["verification"]["samples"] == 1
    assert report["verification"]["branches"] == 11
    assert report["verification"]["max_branch_deviation"] <= 1e-4
    assert "tracing stages: 4/4" in result.stderr
    assert "exporting stages: 4/4" in result.stderr
    assert "verifying branches: 11/11" in result.stderr
    assert os.listdir(path.parent) == ["bundle"]


def test_people_get_a_line_and_the_flags_reach_the_library(saved, bundle, tmp_path, monkeypatch):
    """Over an earlier bundle; the library's own tests overwrite for real."""
    calls = []

    def export(network, path, overwrite, **options):
        calls.append((path, overwrite, options["verify"]))
        return read_manifest(bundle[0]).model_copy(
            update={"verification": Verification(samples=0, tolerance=1e-4)}
        )

    monkeypatch.setattr("rnp_deploy.exporters.export_bundle", export)
    shutil.copytree(bundle[0], tmp_path / "bundle")
    assert "exists; pass --overwrite" in failure(main, [saved[1], "-o", tmp_path / "bundle"])
    out = success(main, [saved[1], "-o", tmp_path / "bundle", "--overwrite", "--verify", "0"]).stdout
    success(main, [saved[1], "--output", tmp_path / "other"])
    assert out.startswith(f"{tmp_path / 'bundle'}: 11 branches, ")
    assert "not verified" in out
    assert calls == [(tmp_path / "bundle", True, 0), (tmp_path / "other", False, 2)]


def test_a_precision_and_its_report(saved, tmp_path):
    path = tmp_path / "bundle"
    arguments = [
        saved[1],
        "-o",
        path,
        "--precision",
        "int8",
        "--data",
        "digits",
        "--opset",
        "17",
        "--verify",
        "1",
    ]
    result = success(main, [*arguments, "--json"])
    report, manifest = json.loads(result.stdout), read_manifest(path)
    assert report["precision"] == manifest.precision == "int8"
    assert report["precision_report"] == manifest.precision_report.model_dump(mode="json")
    assert report["precision_report"]["images"] == 450
    assert "finding ranges: 256/256" in result.stderr
    shown = success(inspect, [path]).stdout
    assert "format 1.0, int8, by" in shown
    for line in manifest.precision_report.lines():
        assert line in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "int8"], "int8 needs images to find the ranges"),
        (
            ["--precision", "fp16", "--opset", "22"],
            "opset=22: fp16 bundles are written in opset 17, 18, 19, 20",
        ),
        (["--precision", "fp16", "--data", "mnist"], "there is no data set 'mnist'"),
    ],
)
def test_precisions_that_cannot_be(saved, arguments, words, tmp_path):
    assert words in failure(main, [saved[1], "-o", tmp_path / "bundle", *arguments])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--precision", "fp16"], ["--opset", "17"], ["--data", "digits"]])
def test_a_single_file_is_fp32(saved, arguments, tmp_path):
    whole = [saved[1], "--single-file", "-o", tmp_path / "model.onnx", *arguments]
    result = CliRunner().invoke(main, [str(argument) for argument in whole])
    assert result.exit_code == 2
    assert "--single-file takes no --precision" in result.stderr


def test_a_single_file_and_its_report(saved, tmp_path):
    network, path = saved[0], tmp_path / "model.onnx"
    result = success(main, [saved[1], "--single-file", "-o", path, "--verify", "1", "--json"])
    report = json.loads(result.stdout)
    assert report.pop("seconds") > 0
    assert report.pop("verification")["max_path_deviation"] <= 1e-4
    assert report == {"path": str(path), "bytes": path.stat().st_size, "branches": 11, "agent_trained": True}
    assert "verifying paths: " in result.stderr
    images = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        expected, options = network(images)
    got = engine_from_onnx(path.read_bytes(), tmp_path, "file", threads=1).run({"images": images.numpy()})
    assert got["options"].tolist() == options.tolist()
    np.testing.assert_allclose(got["outputs"], expected.numpy(), atol=1e-4 * float(expected.abs().max()))
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_a_single_file_over_another(saved, bundle, tmp_path, monkeypatch):
    """The library's own tests write and overwrite for real."""
    calls = []

    def export(network, path, overwrite, **options):
        calls.append((path, overwrite, options["verify"], options["classes"]))
        manifest = read_manifest(bundle[0]).model_copy(
            update={"verification": Verification(samples=0, tolerance=1e-4)}
        )
        return SingleFile(path, 1_200_000, manifest)

    monkeypatch.setattr("rnp_deploy.exporters.export_single_file", export)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x0a\x12\x0arnp-deploy")
    assert "model.onnx exists; pass --overwrite" in failure(main, [saved[1], "--single-file", "-o", path])
    arguments = [saved[1], "--single-file", "-o", path, "--overwrite", "--verify", "0"]
    out = success(main, arguments).stdout
    assert out.startswith(f"{path}: 11 branches, 1.2 MB, not verified, ")
    assert calls == [(path, True, 0, CLASSES)]


def test_a_single_file_is_refused_where_something_else_is_before_any_work(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rnp_deploy.network.checkpoint.load_checkpoint", lambda _: pytest.fail("work was done")
    )
    (tmp_path / "bundle").mkdir()
    (tmp_path / "thesis").write_text("irreplaceable")
    arguments = [saved[1], "--single-file", "--overwrite", "-o"]
    assert "bundle is a directory; pass the path of a file" in failure(
        main, [*arguments, tmp_path / "bundle"]
    )
    assert "it is not ours to overwrite" in failure(main, [*arguments, tmp_path / "thesis"])
    assert "missing does not exist; create it first" in failure(
        main, [*arguments, tmp_path / "missing/model.onnx"]
    )
    assert (tmp_path / "thesis").read_text() == "irreplaceable"


def test_an_output_that_is_not_ours_is_refused_before_any_work(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "rnp_deploy.network.checkpoint.load_checkpoint", lambda _: pytest.fail("work was done")
    )
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/text").write_text("irreplaceable")
    line = failure(main, [saved[1], "-o", tmp_path / "thesis", "--overwrite"])
    assert "thesis holds no manifest.json; it is not ours to overwrite" in line
    assert "missing does not exist; create it first" in failure(
        main, [saved[1], "-o", tmp_path / "missing/bundle"]
    )
    assert os.listdir(tmp_path / "thesis") == ["text"]


class Trap:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def remove_all(path):
    shutil.rmtree(path)


def foreign(path):
    (path / "checkpoint.json").unlink()


def single_file(data):
    def replace(path):
        shutil.rmtree(path)
        path.write_bytes(data)

    return replace


def saved_by_torch(make, **options):
    def replace(path):
        shutil.rmtree(path)
        torch.save(make(path), path, **options)

    return replace


def pickled(path):
    shutil.rmtree(path)
    path.write_bytes(pickle.dumps(Trap(path.parent / "sprung")))


def trap(path):
    return {"state_dict": torch.zeros(2), "epoch": Trap(path.parent / "sprung")}


def safetensors_alone(path):
    data = (path / "model.safetensors").read_bytes()
    single_file(data)(path)


def config(**change):
    def edit(path):
        file = path / "checkpoint.json"
        raw = {**json.loads(file.read_text()), **change}
        file.write_text(json.dumps(raw))

    return edit


def config_text(data):
    return lambda path: (path / "checkpoint.json").write_bytes(data)


def weights(damage, *, sign=False):
    """Damage the weights; signed, only safetensors itself can tell."""

    def edit(path):
        file = path / "model.safetensors"
        data = damage(file.read_bytes())
        file.write_bytes(data)
        if sign:
            config(weights_sha256=hashlib.sha256(data).hexdigest())(path)

    return edit


def last_byte_changed(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def orders(change):
    def edit(path):
        raw = json.loads((path / "checkpoint.json").read_text())["orders"]
        config(orders={conv: change(order) for conv, order in raw.items()})(path)

    return edit


def digits_with(**arguments):
    return config(architecture={"name": "digits-cnn", "arguments": arguments})


def without_the_end(data):
    return data[:-40]


OLD_TORCH_HEADER = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\x00"
OLD = {"_use_new_zipfile_serialization": False}

BAD = {
    "missing": (remove_all, "is not a checkpoint: there is no checkpoint.json"),
    "foreign folder": (foreign, "is not a checkpoint: there is no checkpoint.json"),
    "pickled code in a .pt": (saved_by_torch(trap), "holds pickled code"),
    "pickled code in an old .pt": (saved_by_torch(trap, **OLD), "holds pickled code"),
    "pickled code": (pickled, "holds pickled code"),
    "pickled module": (saved_by_torch(lambda _: torch.nn.Linear(2, 2)), "holds pickled code"),
    "state dict in a .pt": (saved_by_torch(lambda _: {"weight": torch.zeros(2)}), "not their architecture"),
    "bare safetensors": (safetensors_alone, "not their architecture"),
    "empty file": (single_file(b""), "nor a file of tensors"),
    "text file": (single_file(b"weights"), "nor a file of tensors"),
    "broken zip": (single_file(b"PK\x03\x04 and no more"), "nor a file of tensors"),
    "broken old .pt": (single_file(OLD_TORCH_HEADER), "damaged or holds pickled code"),
    "pickle without a stack": (single_file(b"\x80\x020"), "damaged or holds pickled code"),
    "pickle that ends in a number": (single_file(b"\x80\x02J\x01"), "damaged or holds pickled code"),
    "byte of the weights changed": (weights(last_byte_changed), "model.safetensors"),
    "weights truncated": (weights(without_the_end), "model.safetensors"),
    "weights truncated, signed": (weights(without_the_end, sign=True), "model.safetensors"),
    "weights not safetensors, signed": (weights(lambda _: b"text", sign=True), "model.safetensors"),
    "weights missing": (lambda path: (path / "model.safetensors").unlink(), "model.safetensors"),
    "config empty": (config_text(b""), "checkpoint.json cannot be read"),
    "config no JSON": (config_text(b"{"), "checkpoint.json cannot be read"),
    "config a list": (config_text(b"[]"), "not an object"),
    "config not UTF-8": (config_text(b'{"a": "\xff"}'), "checkpoint.json cannot be read"),
    "config of nothing": (config_text(b"{}"), "not a checkpoint of ours"),
    "other kind": (config(kind="recipe"), "kind"),
    "other version": (config(format_version="2.0"), "format_version"),
    "unknown key": (config(novelty=1), "novelty"),
    "unknown backbone": (config(architecture={"name": "lenet", "arguments": {}}), "'lenet'"),
    "own backbone": (config(architecture=None), "backbone of your own"),
    "unknown argument": (digits_with(depth=3), "depth"),
    "bad argument": (digits_with(widths="8,8"), "widths='8,8'"),
    "argument of another network": (digits_with(widths="8,8,8,16"), "do not fit"),
    "one group": (config(pruning={"groups": 1}), "pruning.groups"),
    "too many groups": (config(pruning={"groups": 3}), "do not divide"),
    "other channels": (config(input_shape=[3, 16, 16]), "cannot be rebuilt"),
    "shape below zero": (config(input_shape=[1, -16, 16]), "input_shape"),
    "shape beyond memory": (config(input_shape=[1, 10**6, 10**6]), "input_shape"),
    "state below zero": (config(state_size=-1), "state_size"),
    "state beyond memory": (config(state_size=10**14), "state_size"),
    "state beyond 64 bits": (config(state_size=10**30), "out of range"),
    "order of other convs": (config(orders={}), "other prunable convolutions"),
    "order that repeats a channel": (orders(lambda order: [0] * len(order)), "order"),
    "order too short": (orders(lambda order: order[:-1]), "order"),
    "preprocessing of other channels": (
        config(preprocessing={"colour": "L", "size": [16, 16], "mean": [0, 0], "std": [1]}),
        "preprocessing",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "words"), BAD.values(), ids=BAD)
def test_bad_checkpoints(checkpoint, tmp_path, damage, words):
    damage(checkpoint)
    before = sorted(os.listdir(tmp_path))
    line = failure(main, [checkpoint, "-o", tmp_path / "bundle", "--verify", "0"])
    assert words in line
    assert str(checkpoint) in line
    assert not (tmp_path / "sprung").exists(), "code in the file was executed"
    assert sorted(os.listdir(tmp_path)) == before


def test_the_trap_springs_when_unpickled(tmp_path):
    """Or the cases above could pass because it never would."""
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung"))).close()
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("missing", ["torch", "safetensors"])
def test_without_the_export_extra_the_line_names_it(checkpoint, tmp_path, missing):
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom rnp_deploy.tools.export import main; main()"
    command = [sys.executable, "-c", code, str(checkpoint), "-o", str(tmp_path / "bundle"), "--verify", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "rnp-deploy[export]" in done.stderr


def test_classes_that_are_not_the_networks_are_refused(checkpoint, tmp_path):
    config(classes=["only", "two"])(checkpoint)
    assert "classes" in failure(main, [checkpoint, "-o", tmp_path / "bundle", "--verify", "0"])
    assert not (tmp_path / "bundle").exists()


def test_an_interrupted_export_leaves_nothing(saved, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rnp_deploy.exporters.bundle_export.cut_branch", interrupt)
    from click.testing import CliRunner

    result = CliRunner().invoke(main, [str(saved[1]), "-o", str(tmp_path / "bundle")])
    assert result.exit_code == 1
    assert "Aborted" in result.stderr
    assert os.listdir(tmp_path) == []
