"""The one table of networks the tests use, from tiny ones to VGG-16 and ResNet-50."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rnp_deploy.network import RuntimePrunedNetwork


class Vgg(nn.Module):
    """Convolutions 3x3 with ReLU, ``"M"`` a max pool, and a flatten + linear head."""

    def __init__(
        self, plan: Sequence[int | str], head: nn.Module, *, norm: bool, size: int | None = None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in plan:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, int(width), 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(int(width))] if norm else []
            layers.append(nn.ReLU(inplace=True))
            channels = int(width)
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.Identity() if size is None else nn.AdaptiveAvgPool2d((size, size))
        self.classifier = head

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(inputs, width * 4, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    def __init__(
        self, block: type[Basic] | type[Bottleneck], depths: Sequence[int], width: int, classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = width
        for index, depth in enumerate(depths):
            blocks = []
            for position in range(depth):
                blocks.append(block(inputs, width << index, 2 if index and not position else 1))
                inputs = (width << index) * block.expansion
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
        self.depth = len(depths)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(self.depth):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class PreActivation(nn.Module):
    """Norm and ReLU before the convolutions, one functional and one reused ReLU, ``view`` and ``mean`` heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 16, 3, 2, 1)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 8, 3, 1, 1)
        self.project = nn.Conv2d(8, 8, 1, 2)
        self.relu = nn.ReLU()
        self.last = nn.Conv2d(8, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        h = self.relu(self.bn1(x))
        h = self.conv2(F.relu(self.bn2(self.conv1(h)))) + self.project(h)
        h = self.last(self.relu(h)).sigmoid().mean(dim=(2, 3))
        return self.fc(h.view(h.size(0), -1))


class Separable(nn.Module):
    """A convolution, the depthwise one that follows it, per-channel PReLU, and a flattened 1-d norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.expand = nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.prelu = nn.PReLU(16)
        self.reduce = nn.Conv2d(16, 8, 1)
        self.norm = nn.BatchNorm1d(8 * 16)
        self.fc = nn.Linear(8 * 16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.depthwise(F.silu(self.expand(self.stem(x)))))
        x = F.avg_pool2d(torch.tanh(self.reduce(x)), 2)
        return self.fc(self.norm(x.reshape(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3])))


class InPlace(nn.Module):
    """A trunk that is added to in place across decisions, a conv used twice with two norms, in-place functions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.conv1 = nn.Conv2d(8, 8, 3, 1, 1)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1)
        self.shared = nn.Conv2d(8, 8, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 12, 3, 1, 1)
        self.conv4 = nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, 4)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        gain = self.gain.sigmoid().view(1, -1, 1, 1)
        x = self.stem(x)
        h = F.relu(self.conv1(input=x), inplace=True)
        x += self.conv2(h) * gain
        x.relu_()
        F.leaky_relu_(x, 0.2)
        x = self.bn1(self.shared(x)) + self.bn2(self.shared(x * 0.5))
        x = x.add_(self.conv4(torch.relu_(self.conv3(x))))
        return self.fc(torch.flatten(input=F.adaptive_avg_pool2d(x * gain, 1), start_dim=1))


class Net(nn.Module):
    """``stem``, ``c``, ``d`` and ``modules``: what ``forward(net, x)`` makes of the stem's output ``x``."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.d = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 4)
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, self.stem(x))


def head(m: Any, x: Tensor) -> Tensor:
    """The end of a :class:`Net`."""
    return m.fc(x.mean((2, 3)))


def chain(norm: bool) -> nn.Module:
    head = nn.Sequential(nn.Linear(32 * 16, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 10))
    return Vgg([8, 16, "M", 16, 32, "M"], head, norm=norm)


#: Name → (factory, example shape without the batch).
TINY: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "chain": (lambda: chain(norm=False), (3, 16, 16)),
    "chain with norm": (lambda: chain(norm=True), (3, 16, 16)),
    "basic residual": (lambda: ResNet(Basic, [1, 2], 8, 10), (3, 32, 32)),
    "bottleneck residual": (lambda: ResNet(Bottleneck, [1, 1], 8, 10), (3, 32, 32)),
    "pre-activation residual": (PreActivation, (3, 16, 16)),
    "separable": (Separable, (3, 16, 16)),
    "in place": (InPlace, (3, 16, 16)),
}

#: Network → conv → who reads its channels; by hand, to hold the channel analysis against.
READERS: dict[str, dict[str, tuple[str, ...]]] = {
    "chain": {
        "features.2": ("features.5",),
        "features.5": ("features.7",),
        "features.7": ("classifier.0",),
    },
    "chain with norm": {
        "features.3": ("features.7",),
        "features.7": ("features.10",),
        "features.10": ("classifier.0",),
    },
    "basic residual": {
        "layer1.0.conv1": ("layer1.0.conv2",),
        "layer2.0.conv1": ("layer2.0.conv2",),
        "layer2.1.conv1": ("layer2.1.conv2",),
    },
    "bottleneck residual": {
        "layer1.0.conv1": ("layer1.0.conv2",),
        "layer1.0.conv2": ("layer1.0.conv3",),
        "layer2.0.conv1": ("layer2.0.conv2",),
        "layer2.0.conv2": ("layer2.0.conv3",),
    },
    "pre-activation residual": {"conv1": ("conv2",), "last": ("fc",)},
    "separable": {"expand": ("reduce",), "reduce": ("fc",)},
    "in place": {"conv1": ("conv2",), "conv3": ("conv4",)},
}

VGG16 = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]


def vgg16() -> nn.Module:
    head = nn.Sequential(
        nn.Linear(512 * 49, 4096), nn.ReLU(True), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(True),
        nn.Dropout(), nn.Linear(4096, 1000),
    )  # fmt: skip
    return Vgg(VGG16, head, norm=False, size=7)


def resnet50() -> nn.Module:
    return ResNet(Bottleneck, [3, 4, 6, 3], 64, 1000)


def make(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, int, int]]:
    """A tiny network with random weights, its norms' statistics random too, in eval mode."""
    factory, shape = TINY[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomised(factory()), shape


def undecided(network: RuntimePrunedNetwork, seed: int = 0) -> RuntimePrunedNetwork:
    """Let the agent choose now this, now that, as if trained: a new one takes all groups, whatever it sees."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.agent.decoder.reset_parameters()
    network.agent.trained = True
    return network


def randomised(network: nn.Module) -> nn.Module:
    """Give norms statistics that a mistake in folding or slicing them would show."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.4)
        if isinstance(
            getattr(module, "layer_scale", None), nn.Parameter
        ):  # 1e-6 to begin with, which would hide its block
            nn.init.uniform_(module.layer_scale, 0.5, 1.5)
    return network.eval()
