"""Random small CNNs, put together from the parts that real ones are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["PARTS", "RandomCnn", "padded_at"]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, 1, 1, bias=False), nn.BatchNorm2d(2 * channels), nn.ReLU(),
            nn.Conv2d(2 * channels, channels, 3, 1, 1),
        )  # fmt: skip
        self.gain = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.body(x) * self.gain.view(1, -1, 1, 1)).relu()


class _ScaledInside(nn.Module):
    """A layer scale that follows the convolution before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(channels, 16, 1)
        self.scale = nn.Parameter(0.5 + torch.rand(16))
        self.down = nn.Conv2d(16, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).tanh() * self.scale[:, None, None])


class _Inverted(nn.Module):
    """Expansion, depthwise or grouped convolution, squeeze-excite, projection."""

    def __init__(self, channels: int, groups: int, linear_gate: bool) -> None:
        super().__init__()
        wide = 4 * channels
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU())
        self.depthwise = nn.Conv2d(wide, wide, 3, 1, 1, groups=groups or wide)
        self.pool = nn.AdaptiveAvgPool2d(1)
        layer: Callable[[int, int], nn.Module] = nn.Linear if linear_gate else lambda i, o: nn.Conv2d(i, o, 1)
        self.gate = nn.Sequential(layer(wide, 8), nn.ReLU(), layer(8, wide), nn.Hardsigmoid())
        self.linear_gate = linear_gate
        self.project = nn.Conv2d(wide, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        pooled = self.pool(y)
        if self.linear_gate:
            n, c, _, _ = y.size()
            return x + self.project(y * self.gate(pooled.view(n, c)).view(n, c, 1, 1).expand_as(y))
        return x + self.project(self.gate(pooled) * y)


class _Concatenated(nn.Module):
    """Parallel branches and the input itself, shuffled or not."""

    def __init__(self, channels: int, shuffle: bool) -> None:
        super().__init__()
        half = channels // 2
        self.branches = nn.ModuleList([
            nn.Sequential(nn.Conv2d(channels, half, 1), nn.BatchNorm2d(half), nn.ReLU()),
            nn.Sequential(
                nn.Conv2d(channels, 8, 1), nn.ReLU(), nn.Conv2d(8, half, 3, 1, 1), nn.Hardswish(),
            ),
        ])  # fmt: skip
        self.norm = nn.BatchNorm2d(channels * 2)
        self.merge = nn.Conv2d(channels * 2, channels, 1)
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, *(branch(x) for branch in self.branches)], 1)
        if self.shuffle:
            n, c, h, w = y.shape
            y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.merge(self.norm(y).relu())


class _ChannelsLast(nn.Module):
    """As in ConvNeXt: a norm over channels, and linear layers that are pointwise convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 32), nn.Linear(32, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(nn.functional.gelu(self.up(self.norm(x.permute(0, 2, 3, 1)))))
        return x + y.permute(0, 3, 1, 2)


class _SeveralReaders(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 16, 3, 1, 1)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, channels, 3, 1, 1)
        self.last = nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).sigmoid()
        return self.right(y[:, :, :, :]) + self.last(self.left(y * 0.5).tanh())


class _Mixed(nn.Module):
    """What needs all channels: a group norm, a mean over channels, a convolution used twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.up = nn.Conv2d(channels, 16, 3, 1, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.down = nn.Conv2d(16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.up(x)).relu()
        return self.down(y * y.mean(1, keepdim=True).sigmoid())


PARTS: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda c: nn.Sequential(nn.Conv2d(c, c, 3, 1, 1), nn.BatchNorm2d(c), nn.LeakyReLU()),
    "strided": lambda c: nn.Sequential(nn.Conv2d(c, c, 3, 2, 1, bias=False), nn.ReLU6(), nn.PReLU(c)),
    "pooled": lambda c: nn.Sequential(nn.Conv2d(c, c, 5, 1, 2), nn.MaxPool2d(3, 2, 1), nn.Dropout2d()),
    "residual": _Residual,
    "scaled inside": _ScaledInside,
    "depthwise": lambda c: _Inverted(c, 0, False),
    "grouped, linear gate": lambda c: _Inverted(c, 8, True),
    "concatenated": lambda c: _Concatenated(c, False),
    "shuffled": lambda c: _Concatenated(c, True),
    "channels last": _ChannelsLast,
    "several readers": _SeveralReaders,
    "mixed": _Mixed,
}


class RandomCnn(nn.Module):
    """A stem, parts in a row, a ``flatten`` or ``mean`` head."""

    def __init__(self, parts: Sequence[str], channels: int, flatten: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 1, 1)
        self.parts = nn.Sequential(*(PARTS[part](channels) for part in parts))
        self.last = nn.Conv2d(channels, 12, 1)
        self.flatten = flatten
        self.fc = nn.Linear(12 * 16 if flatten else 12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.last(self.parts(self.stem(x))), (4, 4))
        return self.fc(x.flatten(1) if self.flatten else x.mean((2, 3)))


def padded_at(conv: str) -> str:
    """The module whose output a concatenation takes: the branch the convolution is in."""
    return conv.rpartition(".")[0]
