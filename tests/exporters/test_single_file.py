"""Exporting one file: what it computes and says of itself, what is refused, and that a wrong one is caught."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import networks
from rnp_deploy import __version__
from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.engines import ort
from rnp_deploy.engines.single_file import _Joined, _Weights
from rnp_deploy.errors import ExportError, InputError, OutputExistsError, VerificationError
from rnp_deploy.exporters import export_single_file, single_file
from rnp_deploy.network import RuntimePrunedNetwork


def make(name, **settings):
    backbone, shape = networks.make(name)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, *shape), **settings)
    return networks.undecided(network)


@pytest.fixture(scope="module")
def separable():
    return make("separable")


def outputs(path, images, **feeds):
    options = ort.session_options(path.parent, ort.threads_in_use())
    session = onnxruntime.InferenceSession(path, options)
    names = [output.name for output in session.get_outputs()]
    rows = [session.run(names, {"images": images[i : i + 1], **feeds}) for i in range(len(images))]
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("name", "settings", "branches"),
    [
        ("chain", {}, "pairs"),
        ("pre-activation residual", {"groups": 3, "align": 1}, "pairs"),
        ("bottleneck residual", {"groups": 2, "overrides": {"layer1.*": 4}, "penalty": 0.2}, "outputs"),
        ("separable", {"penalty_range": None, "penalty": 0.05}, {"reduce": "outputs"}),
    ],
)
def test_it_computes_what_the_network_does(name, settings, branches, tmp_path):
    network = make(name, **settings)
    path = tmp_path / "model.onnx"
    written = export_single_file(network, path, branches=branches)
    assert written.path == path
    assert written.bytes == path.stat().st_size
    images, seen = torch.randn(6, *network.input_shape, generator=torch.Generator().manual_seed(3)), set()
    for penalty in (None, -0.05, 0.1, 2.0):
        with torch.no_grad():
            expected, options = network(images, penalty)
        feeds = {} if penalty is None else {"penalty": np.array([penalty], np.float32)}
        got, taken, macs = outputs(path, images.numpy(), **feeds)
        assert taken.tolist() == options.tolist()
        assert macs.tolist() == [written.manifest.path_macs(row) for row in options.tolist()]
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-5 * float(expected.abs().max()))
        seen.update(map(tuple, taken))
    assert len(seen) > 1, "the agent never changed its mind"
    assert os.listdir(tmp_path) == ["model.onnx"]


def test_it_says_what_it_is(separable, tmp_path):
    preprocessing = Preprocessing(colour="RGB", size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
    classes = tuple("abcdef")
    written = export_single_file(
        separable, tmp_path / "model.onnx", preprocessing=preprocessing, classes=classes, verify=1
    )
    model = onnx.load(tmp_path / "model.onnx")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties.pop("format") == "rnp-deploy single file 1.0"
    assert properties.pop("producer") == f"rnp-deploy {__version__}"
    values = {key: json.loads(value) for key, value in properties.items()}
    assert values["classes"] == list(classes)
    assert Preprocessing.model_validate_json(properties["preprocessing"]) == preprocessing
    assert [decision["conv"] for decision in values["decisions"]] == ["expand", "reduce"]
    assert values["agent_trained"] is True
    assert values["penalty_range"] == list(separable.agent.penalty_range)
    assert values["macs"] == written.manifest.macs
    assert values["verification"] == written.manifest.verification.model_dump(mode="json")


def test_the_verification_is_of_the_file(separable, tmp_path):
    told = []
    written = export_single_file(
        separable, tmp_path / "model.onnx", verify=3, progress=lambda *args: told.append(args)
    )
    verification = written.manifest.verification
    assert verification.branches == 21
    assert verification.samples == 3
    forced = [total for what, _, total in told if what == "verifying paths"]
    assert len(forced) == forced[0] >= 16
    assert verification.paths == forced[0] + 5 * 3
    assert verification.agent_decisions == verification.agent_decisions_equal == 5 * 3 * 2
    assert 0 < verification.max_path_deviation < verification.tolerance


def test_without_verification_it_says_so(separable, tmp_path):
    written = export_single_file(separable, tmp_path / "model.onnx", verify=0)
    assert written.manifest.verification.samples == 0
    assert written.manifest.verification.max_path_deviation is None


def swapped_arms(self, stage, prefix, still, names, make=_Joined._choice):
    """One choice deep in the tree of the last stage takes the wrong arm."""
    node = make(self, stage, prefix, still, names)
    if stage.decision == 1 and list(still.values()) == [(3, 3), (1, 2)]:
        for attribute in node.attribute:
            attribute.name = {"then_branch": "else_branch", "else_branch": "then_branch"}[attribute.name]
    return node


def other_rows(self, make=_Weights.initializers):
    """The rows of one weight are turned around."""
    made = make(self)
    tensor = next(tensor for tensor in made if tensor.name.endswith("expand.weight"))
    rows = np.frombuffer(tensor.raw_data, np.float32).reshape(tuple(tensor.dims))
    tensor.raw_data = rows[::-1].tobytes()
    return made


def forgetful(self, file, prefix, names, nodes, make=_Joined._add_piece):
    """The second step of the agent does not see what the first one left."""
    make(self, file, prefix, names | {"state": self._states[0]} if prefix == "agent1" else names, nodes)


def other_macs(self, make=_Joined.add_macs):
    """The branches' MACs are looked up from the end."""
    make(self)
    (table,) = (node.input[0] for node in self._nodes if node.output[0] == "macs/stages")
    (tensor,) = (tensor for tensor in self._constants.values() if tensor.name == table)
    tensor.raw_data = np.frombuffer(tensor.raw_data, np.int64)[::-1].tobytes()


BROKEN = {
    "arms": (_Joined, "_choice", swapped_arms, "end to end"),
    "MACs": (_Joined, "add_macs", other_macs, "MACs at options"),
    "rows": (_Weights, "initializers", other_rows, "end to end"),
    "state": (_Joined, "_add_piece", forgetful, r"decision 1 took option \d at penalty .*, where"),
}


@pytest.mark.parametrize(("owner", "name", "broken", "words"), BROKEN.values(), ids=BROKEN)
def test_a_wrong_file_is_caught_and_not_written(owner, name, broken, words, separable, tmp_path, monkeypatch):
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(VerificationError, match=words):
        export_single_file(separable, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []


def test_overwriting_has_to_be_asked_for(separable, tmp_path):
    network, path = separable, tmp_path / "model.onnx"
    export_single_file(network, path, verify=0)
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="overwrite"):
        export_single_file(network, path, verify=0)
    path.write_bytes(before[:200])
    export_single_file(network, path, True, verify=0)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.onnx"]


def directory(path):
    path.mkdir()


def text(path):
    path.write_text("irreplaceable")


def link(path):
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("before", "arguments", "error", "words"),
    [
        (directory, {}, OutputExistsError, "is a directory; pass the path of a file"),
        (directory, {"overwrite": True}, OutputExistsError, "is a directory; pass the path of a file"),
        (text, {}, OutputExistsError, "exists; pass --overwrite"),
        (text, {"overwrite": True}, OutputExistsError, "not ours to overwrite"),
        (link, {"overwrite": True}, OutputExistsError, "not ours to overwrite"),
        (None, {"branches": "all"}, InputError, "branches"),
        (None, {"verify": -1}, InputError, "verify"),
        (None, {"classes": ("only", "two")}, InputError, "classes"),
    ],
)
def test_what_is_refused_leaves_the_disk_as_it_was(before, arguments, error, words, separable, tmp_path):
    path = tmp_path / "model.onnx"
    if before is not None:
        before(path)
    found = sorted(os.listdir(tmp_path))
    with pytest.raises(error, match=words):
        export_single_file(separable, path, **arguments)
    assert sorted(os.listdir(tmp_path)) == found
    assert not path.is_file() or path.read_text() == "irreplaceable"


def test_a_model_that_grew_too_large_is_refused(separable, tmp_path, monkeypatch):
    monkeypatch.setattr(single_file, "MOST_BYTES", 50_000)
    with pytest.raises(ExportError, match="2 GB"):
        export_single_file(separable, tmp_path / "model.onnx", verify=0)
    assert os.listdir(tmp_path) == []


def test_export_leaves_the_network_as_it_was(tmp_path):
    network = make("separable").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    export_single_file(network, tmp_path / "model.onnx", verify=1)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
