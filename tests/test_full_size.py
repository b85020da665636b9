"""VGG-16, ResNet-50 and MobileNetV2 at full size, random weights: ``make test-slow``; prints what it measured."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import nn

import networks
from rnp_deploy import Controller
from rnp_deploy.bundle import open_bundle
from rnp_deploy.engines.trt_build import build_tensorrt_set
from rnp_deploy.exporters import export_bundle
from rnp_deploy.network import RuntimePrunedNetwork
from tensorrt_cases import needs_rtx
from torchvision_models import torchvision

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4


def dense_onnx_bytes(backbone, path):
    torch.onnx.export(backbone, (torch.zeros(1, 3, 224, 224),), path, dynamo=True, verbose=False)
    return sum(file.stat().st_size for file in path.parent.iterdir())


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "mobilenet_v2"])
def test_full_size(name, tmp_path):
    torch.manual_seed(0)
    factory = getattr(networks, name, None) or torchvision.models.get_model_builder(name)
    backbone = networks.randomised(factory())
    started = time.perf_counter()
    network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, 3, 224, 224))
    manifest = export_bundle(network, tmp_path / "bundle", verify=1)
    seconds = time.perf_counter() - started
    bundle_bytes = sum(file.stat().st_size for file in (tmp_path / "bundle").rglob("*") if file.is_file())
    (tmp_path / "dense").mkdir()
    dense_bytes = dense_onnx_bytes(backbone, tmp_path / "dense" / "dense.onnx")
    worst = manifest.verification.max_branch_deviation
    images = torch.randn(8, 3, 224, 224)
    options = network.random_options(8)
    with Controller.load(tmp_path / "bundle") as controller, torch.no_grad():
        together = controller.run(images.numpy(), options=options.numpy())
        alone = [
            controller.run(images[i : i + 1].numpy(), options=options[i : i + 1].numpy()) for i in range(8)
        ]
        expected = network.run(images, options).numpy()
    single = np.concatenate([result.outputs for result in alone])
    scale = np.abs(expected).max()
    mixed = np.abs(together.outputs - single).max() / scale
    masked = np.abs(together.outputs - expected).max() / scale
    print(
        f"\n{name}: {len(network.decisions)} decisions, {manifest.branch_count()} branches, "
        f"export {seconds:.1f} s, worst branch {worst:.1e}, batch of 8 against single runs {mixed:.1e}, "
        f"against the masked reference {masked:.1e}, bundle ÷ dense ONNX {bundle_bytes / dense_bytes:.3f} "
        f"({bundle_bytes / 1e6:.1f} MB)"
    )
    assert worst <= TOLERANCE
    assert mixed <= TOLERANCE
    assert masked <= TOLERANCE
    assert bundle_bytes <= 1.1 * dense_bytes


@needs_rtx
@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_engines_of_tensorrt_rtx(name, tmp_path):
    torch.manual_seed(0)
    classifier = nn.Linear(512, 1000)
    vgg = networks.Vgg(networks.VGG16, classifier, norm=False, size=1)
    backbone = vgg.eval() if name == "vgg16" else networks.randomised(networks.resnet50())
    network = RuntimePrunedNetwork.from_backbone(backbone, torch.zeros(1, 3, 224, 224))
    export_bundle(network, tmp_path / "bundle", verify=0)
    bundle, seconds = open_bundle(tmp_path / "bundle"), []
    for folder, cache in (("a", tmp_path / "cache"), ("b", ""), ("c", tmp_path / "cache")):
        started = time.perf_counter()
        engines = build_tensorrt_set(bundle, tmp_path / folder, flavor="rtx", cache_dir=cache)
        seconds.append(time.perf_counter() - started)
    print(
        f"\n{name}: {len(engines.files)} engines of TensorRT-RTX, {sum(f.bytes for f in engines.files) / 1e6:.0f} MB; "
        f"built in {seconds[0]:.1f} s, again {seconds[1]:.1f} s, from the cache {seconds[2]:.1f} s"
    )
    described = [(tmp_path / folder / "engines.json").read_bytes() for folder in "abc"]
    assert described[0] == described[1] == described[2]
