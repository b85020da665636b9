"""One network of each classification family of torchvision, made small where the family allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from torchvision_models import torchvision

__all__ = ["FAMILIES", "Family"]

models = torchvision.models


@dataclass(frozen=True)
class Family:
    """``size``: H and W of the images. ``padded_at``: conv → the module whose output a concatenation takes."""

    build: Callable[[], nn.Module]
    size: int
    padded_at: Callable[[str], str] = lambda conv: conv


def _small_head(build: Callable[..., Any], inputs: int) -> nn.Module:
    network: nn.Module = build(weights=None, num_classes=10)
    network.classifier = nn.Sequential(nn.Dropout(), nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 10))
    return network


def _squeezenet_activation(conv: str) -> str:
    return f"{conv}_activation"


def _densenet_output(conv: str) -> str:
    return f"{conv.removesuffix('.conv')}.pool" if "transition" in conv else conv


def _inside(conv: str) -> str:
    """``Mixed_5b.branch1x1.conv``: the module that normalises and activates it."""
    return conv.removesuffix(".conv")


def _shufflenet_branch(conv: str) -> str:
    return conv.rpartition(".")[0]


def _named(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return partial(models.get_model, name, weights=None, num_classes=10, **arguments)


def _residual(block: Any, **arguments: Any) -> Callable[[], nn.Module]:
    return partial(models.ResNet, block, [1, 2, 1, 1], num_classes=10, **arguments)


_Mb, _Fused = models.efficientnet.MBConvConfig, models.efficientnet.FusedMBConvConfig
_V3 = models.mobilenetv3.InvertedResidualConfig
_regnet = partial(models.regnet.BlockParams.from_init_params, w_0=24, w_a=24.48, w_m=2.54, group_width=16)
_Basic, _Bottleneck = models.resnet.BasicBlock, models.resnet.Bottleneck

FAMILIES: dict[str, Family] = {
    "alexnet": Family(partial(_small_head, models.alexnet, 9216), 64),
    "vgg": Family(partial(_small_head, models.vgg11_bn, 25088), 32),
    "resnet basic": Family(_residual(_Basic), 32),
    "resnet bottleneck": Family(_residual(_Bottleneck), 32),
    "resnext": Family(_residual(_Bottleneck, groups=32, width_per_group=4), 32),
    "wide_resnet": Family(_residual(_Bottleneck, width_per_group=128), 32),
    "squeezenet": Family(_named("squeezenet1_1"), 64, _squeezenet_activation),
    "densenet": Family(
        partial(models.DenseNet, 32, (2, 2, 2), 64, num_classes=10), 32, _densenet_output
    ),
    "googlenet": Family(_named("googlenet", init_weights=False), 64, _inside),
    "inception_v3": Family(_named("inception_v3", init_weights=False), 96, _inside),
    "mobilenet_v2": Family(
        _named("mobilenet_v2", inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 48, 2, 2]]), 32
    ),
    "mobilenet_v3": Family(partial(models.MobileNetV3, [
        _V3(16, 3, 16, 16, True, "RE", 2, 1, 1), _V3(16, 3, 72, 24, False, "RE", 2, 1, 1),
        _V3(24, 5, 96, 40, True, "HS", 2, 1, 1), _V3(40, 5, 240, 40, True, "HS", 1, 1, 1),
    ], 64, num_classes=10), 32),
    "mnasnet": Family(_named("mnasnet0_5"), 32),
    "efficientnet": Family(partial(models.EfficientNet, [
        _Mb(1, 3, 1, 32, 16, 1), _Mb(6, 3, 2, 16, 24, 2), _Mb(6, 5, 2, 24, 40, 2),
    ], 0.2, num_classes=10), 32),
    "efficientnet_v2": Family(partial(models.EfficientNet, [
        _Fused(1, 3, 1, 24, 24, 1), _Fused(4, 3, 2, 24, 48, 2), _Mb(4, 3, 2, 48, 64, 2),
    ], 0.2, num_classes=10), 32),
    "regnet_x": Family(partial(models.RegNet, _regnet(depth=8), num_classes=10), 32),
    "regnet_y": Family(partial(models.RegNet, _regnet(depth=8, se_ratio=0.25), num_classes=10), 32),
    "shufflenet_v2": Family(
        partial(models.ShuffleNetV2, [2, 2, 2], [24, 48, 96, 192, 256], num_classes=10), 32, _shufflenet_branch
    ),
    "convnext": Family(partial(models.ConvNeXt, [
        models.convnext.CNBlockConfig(64, 128, 1), models.convnext.CNBlockConfig(128, None, 2),
    ], num_classes=10), 32),
}  # fmt: skip
