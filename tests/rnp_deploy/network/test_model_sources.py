"""Backbones by name and weights by file: what is understood, what is refused, and that nothing is run."""

from __future__ import annotations

import sys
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import networks
from rnp_deploy.bundle.manifest import Preprocessing
from rnp_deploy.errors import CheckpointError, InputError, MissingRuntimeError
from rnp_deploy.network.model_sources import build_model, is_library_model, load_weights
from torchvision_models import torchvision

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_a_model_of_torchvision_comes_with_its_preprocessing():
    source = build_model("torchvision:resnet18", {"num_classes": 7})
    assert type(source.module) is torchvision.models.ResNet
    assert source.module.fc.out_features == 7
    assert source.preprocessing == Preprocessing(colour="RGB", size=(224, 224), shorter_side=256, **IMAGENET)


def test_a_model_of_timm_comes_with_its_preprocessing():
    pytest.importorskip("timm")
    source = build_model("timm:resnet18", {"num_classes": 7})
    assert source.module.get_classifier().out_features == 7
    known = source.preprocessing
    assert (known.colour, known.mean, known.std) == ("RGB", IMAGENET["mean"], IMAGENET["std"])
    assert known.shorter_side >= known.size[0] == known.size[1]


def test_a_factory_is_imported_and_called():
    source = build_model("networks:chain", {"norm": True})
    assert isinstance(source.module, networks.Vgg)
    assert source.preprocessing is None
    assert isinstance(build_model("networks:PreActivation").module, networks.PreActivation)


@pytest.mark.parametrize(
    ("source", "library"),
    [
        ("torchvision:resnet18", True),
        ("timm:resnet18.a1_in1k", True),
        ("networks:chain", False),
        ("torchvision.models:resnet18", False),
        ("timm:hf-hub:someone/model", False),
        ("torchvision:../x", False),
        ("torchvision:", False),
        ("torchvision:resnet18\n", False),
    ],
)
def test_names_that_lead_to_the_libraries_alone(source, library):
    assert is_library_model(source) is library


@pytest.mark.parametrize(
    ("source", "arguments", "words"),
    [
        ("resnet18", {}, ["'resnet18'", "torchvision:NAME"]),
        (":resnet18", {}, ["package.module:factory"]),
        ("networks:", {}, ["package.module:factory"]),
        ("torchvision:resnet81", {}, ["no classification model 'resnet81'", "resnet18"]),
        ("torchvision:zzzz", {}, ["similar: none"]),
        ("torchvision:res net", {}, ["no name of a torchvision model"]),
        ("timm:hf-hub:someone/model", {}, ["no name of a timm model"]),
        ("torchvision:fcn_resnet50", {}, ["no classification model"]),
        ("torchvision:resnet18", {"classes": 3}, ["cannot be built", "TypeError", "classes"]),
        ("nowhere.at_all:factory", {}, ["No module named 'nowhere'", "PYTHONPATH"]),
        ("networks:nothing", {}, ["cannot be built", "nothing"]),
        ("networks:chain", {}, ["cannot be built", "norm"]),
        ("networks:VGG16", {}, ["cannot be built", "not callable"]),
        ("builtins:dict", {}, ["gives a dict", "torch module"]),
    ],
)
def test_bad_names_are_refused(source, arguments, words):
    with pytest.raises(InputError) as caught:
        build_model(source, arguments)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_model_of_timm_is_refused():
    pytest.importorskip("timm")
    with pytest.raises(InputError, match=r"no model 'resnet81'; similar: .*resnet"):
        build_model("timm:resnet81")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_that_is_not_installed_is_named(library, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingRuntimeError, match=f"{library} cannot be imported.*install"):
        build_model(f"{library}:resnet18")


def small():
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 1), norm=nn.BatchNorm2d(2)))


def filled(value, module=None):
    """A state dict of one value; its shapes are those of ``module``."""
    return {name: torch.full_like(tensor, value) for name, tensor in (module or small()).state_dict().items()}


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


ONE, TWO = filled(1), filled(2)


@pytest.mark.parametrize(
    ("content", "section"),
    [
        (ONE, None),
        ({"state_dict": ONE, "epoch": 3, "best": 0.5, "arch": "x"}, "state_dict"),
        ({"model": ONE, "optimizer": {"state": {}, "param_groups": []}}, "model"),
        ({"state_dict": TWO, "state_dict_ema": ONE}, "state_dict_ema"),
        ({"model": TWO, "model_ema": prefixed("module.", {"n_averaged": torch.tensor(5), **ONE})}, "model_ema"),
        ({"model": TWO, "model_ema": {"n_averaged": torch.tensor(5), **prefixed("module.", ONE)}}, "model_ema"),
        ({"net": TWO, "ema": {"state_dict": ONE, "decay": 0.9}}, "ema"),
        ({"state_dict": ONE, "state_dict_ema": None}, "state_dict"),
        ({"model": {"state_dict": ONE}}, "model"),
        (prefixed("module.", ONE), None),
        (prefixed("_orig_mod.", ONE), None),
        (prefixed("module._orig_mod.", ONE), None),
        ({"state_dict": prefixed("model.", ONE)}, "state_dict"),
        ({name: nn.Parameter(value, False) if value.ndim else value for name, value in ONE.items()}, None),
    ],
)  # fmt: skip
def test_weights_are_found_where_training_scripts_leave_them(tmp_path, content, section):
    torch.save(content, tmp_path / "weights.pt")
    module = small()
    assert load_weights(module, tmp_path / "weights.pt").section == section
    assert all(bool((tensor == 1).all()) for tensor in module.state_dict().values())


def test_safetensors(tmp_path):
    save_file(ONE, tmp_path / "weights.safetensors")
    module = small()
    loaded = load_weights(module, str(tmp_path / "weights.safetensors"))
    assert (loaded.section, loaded.ignored) == (None, ())
    assert all(bool((tensor == 1).all()) for tensor in module.state_dict().values())


@pytest.mark.parametrize(("section", "value"), [("state_dict", 1), ("teacher", 2), (None, 3)])
def test_a_section_may_be_named(tmp_path, section, value):
    torch.save({"state_dict": ONE, "teacher": TWO, "model_ema": filled(3)}, tmp_path / "weights.pt")
    module = small()
    assert load_weights(module, tmp_path / "weights.pt", section).section == (section or "model_ema")
    assert module.conv.bias[0].item() == value


@pytest.mark.parametrize("name", ["model", "module", "_orig_mod"])
def test_a_prefix_that_the_module_has_itself_stays(tmp_path, name):
    module = nn.Sequential(OrderedDict({name: small()}))
    torch.save(filled(1, module), tmp_path / "weights.pt")
    load_weights(module, tmp_path / "weights.pt")
    assert module.get_submodule(name).conv.bias[0].item() == 1


def test_counts_of_batches_may_be_missing_or_too_many(tmp_path):
    state = {name: tensor for name, tensor in ONE.items() if name != "norm.num_batches_tracked"}
    torch.save({**state, "gone.num_batches_tracked": torch.tensor(1)}, tmp_path / "weights.pt")
    loaded = load_weights(small(), tmp_path / "weights.pt")
    assert sorted(loaded.ignored) == ["gone.num_batches_tracked", "norm.num_batches_tracked"]


def without(*names):
    return {name: tensor for name, tensor in ONE.items() if name not in names}


MANY = {f"extra.{i:02}": torch.zeros(1) for i in range(12)}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (without("conv.bias", "norm.weight"), ["missing: conv.bias, norm.weight."]),
        ({**ONE, "head.weight": torch.zeros(2)}, ["unexpected: head.weight."]),
        ({**ONE, "conv.bias": torch.zeros(3)}, ["of another shape: conv.bias (3,) for (2,)", "number of classes"]),
        ({**without("conv.bias"), "conv.b": torch.zeros(2)}, ["missing: conv.bias; unexpected: conv.b"]),
        ({**ONE, **MANY}, ["extra.00", "extra.07 and 4 more"]),
        (prefixed("module.", {**ONE, "x": torch.zeros(1)}), ["unexpected: x."]),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit_are_listed_and_the_module_stays_untouched(tmp_path, state, words):
    torch.save(state, tmp_path / "weights.pt")
    module = small()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError, match="does not fit Sequential") as caught:
        load_weights(module, tmp_path / "weights.pt")
    for word in words:
        assert word in str(caught.value)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_keys_are_ignored_by_pattern(tmp_path):
    torch.save({**without("conv.bias"), "head.weight": torch.zeros(2)}, tmp_path / "weights.pt")
    module = small()
    before = module.conv.bias.clone()
    loaded = load_weights(module, tmp_path / "weights.pt", ignore=["head.*", "*.bias"])
    assert loaded.ignored == ("conv.bias", "head.weight")
    assert torch.equal(module.conv.bias, before)
    assert module.conv.weight[0].item() == 1
    with pytest.raises(CheckpointError, match=r"missing: conv\.bias\."):
        load_weights(module, tmp_path / "weights.pt", ignore=["head.*", "Conv.*"])


class Trap:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def saved(content):
    return lambda path: torch.save(content(path.parent / "sprung"), path)


def written(data):
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("save", "name", "words"),
    [
        (lambda path: None, "weights.pt", "is no file of weights"),
        (lambda path: path.mkdir(), "weights.pt", "is no file of weights"),
        (saved(lambda _: small()), "weights.pt", "pickled code"),
        (saved(Trap), "weights.pt", "pickled code"),
        (saved(lambda path: {"state_dict": ONE, "epoch": Trap(path)}), "weights.pt", "pickled code"),
        (saved(lambda path: {"conv.bias": Trap(path)}), "weights.safetensors", "cannot be read"),
        (written(b"not weights"), "weights.pt", "is damaged or holds"),
        (written(b""), "weights.pt", "is damaged or holds"),
        (written(b"not weights"), "weights.safetensors", "cannot be read"),
        (saved(lambda _: [torch.zeros(1)]), "weights.pt", "holds a list, not tensors by name"),
        (saved(lambda _: torch.zeros(1)), "weights.pt", "holds a Tensor"),
        (saved(lambda _: {}), "weights.pt", "holds no tensors"),
        (saved(lambda _: {"weights": ONE, "epoch": 3}), "weights.pt", "but weights, epoch; name the section"),
        (saved(lambda _: {"state_dict": {}}), "weights.pt", "holds no tensors"),
    ],
)
def test_files_that_are_no_weights_are_refused_and_nothing_in_them_is_run(tmp_path, save, name, words):
    save(tmp_path / name)
    module = small()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        load_weights(module, tmp_path / name)
    assert not (tmp_path / "sprung").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("section", ["missing", "epoch"])
def test_a_section_that_is_not_there_is_refused(tmp_path, section):
    torch.save({"state_dict": ONE, "epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=f"no section '{section}'; it has state_dict, epoch"):
        load_weights(small(), tmp_path / "weights.pt", section)
