"""A second masked reference, independent of ours: hooks on the backbone itself, untraced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rnp_deploy.network import RuntimePrunedNetwork
from rnp_deploy.network.channels import Channels

__all__ = ["hooked_outputs", "zeroed_outputs"]


def hooked_outputs(
    backbone: nn.Module,
    network: RuntimePrunedNetwork,
    readers: Mapping[str, Sequence[str]],
    images: Tensor,
    options: Tensor,
) -> Tensor:
    """Run the original backbone, image by image, zeroing pruned channels where they are read.

    Args:
        backbone: As given to ``from_backbone``.
        network: Made from it; only its decisions' conv, widths and order are used.
        readers: Conv path → paths of the conv and linear modules that read its channels,
            written down by hand for each network.
        images: ``[N, C, H, W]``.
        options: ``[N, T]``.
    """
    outputs = []
    for image, row in zip(images, options.tolist(), strict=True):
        hooked = copy.deepcopy(backbone).eval()
        for decision, option in zip(network.decisions, row, strict=True):
            dropped = list(decision.order[decision.widths[option - 1] :])
            for path in readers[decision.conv]:
                hooked.get_submodule(path).register_forward_pre_hook(_zeroing(dropped, len(decision.order)))
        with torch.no_grad():
            outputs.append(hooked(image[None]))
    return torch.cat(outputs)


def _zeroing(dropped: list[int], channels: int):  # type: ignore[no-untyped-def]
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        x = inputs[0].clone()
        x.view(x.shape[0], channels, -1)[:, dropped] = 0
        return x

    return hook


def zeroed_outputs(
    backbone: nn.Module,
    network: RuntimePrunedNetwork,
    padded_at: Callable[[str], str],
    images: Tensor,
    options: Tensor,
    *,
    noise: float = 0.0,
) -> Tensor:
    """Run the original backbone, image by image, without what its options drop.

    Readers' weights are known by name; what they read is zeroed by a hook. That no other
    reader was forgotten is what ``noise`` shows: it changes the dropped filters, which must
    change nothing.

    Args:
        backbone: As given to ``from_backbone``.
        network: Made from it; its decisions and the names of the weights it cuts are used.
        padded_at: Conv → the module whose output a concatenation takes, by hand.
        images: ``[N, C, H, W]``.
        options: ``[N, T]``.
        noise: Added to every dropped filter, times a normal variable.
    """
    readers: dict[str, list[tuple[str, Channels]]] = {}
    for cut in network.analysis.cuts:
        if cut.axis == 1:
            readers.setdefault(cut.conv, []).append((cut.name.rpartition(".")[0], cut.channels))
    outputs = []
    for image, row in zip(images, options.tolist(), strict=True):
        hooked = copy.deepcopy(backbone).eval()
        for decision, option in zip(network.decisions, row, strict=True):
            for pruned in decision.convs:
                dropped = list(pruned.order[pruned.widths[option - 1] :])
                for path, channels in readers.get(pruned.conv, []):
                    hook = _dropping(dropped, channels, pruned.widths[-1])
                    hooked.get_submodule(path).register_forward_pre_hook(hook)
                if pruned.conv in network.analysis.fixed:
                    at = hooked.get_submodule(padded_at(pruned.conv))
                    at.register_forward_hook(_dropping_output(dropped))
                layer = hooked.get_submodule(pruned.conv)
                with torch.no_grad():
                    for parameter in layer.parameters():
                        parameter[dropped] += noise * torch.randn_like(parameter[dropped])
        with torch.no_grad():
            outputs.append(hooked(image[None]))
    return torch.cat(outputs)


def _dropping(dropped: list[int], channels: Channels, full: int):  # type: ignore[no-untyped-def]
    units = sorted({channel // channels.unit for channel in dropped})

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        x = inputs[0].clone().movedim(-1 if isinstance(module, nn.Linear) else 1, 1)
        x = x.reshape(x.shape[0], full // channels.unit, channels.repeat, *x.shape[2:])
        x[:, units] = 0
        return x.flatten(1, 2).movedim(1, -1 if isinstance(module, nn.Linear) else 1)

    return hook


def _dropping_output(dropped: list[int]):  # type: ignore[no-untyped-def]
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.clone()
        output[:, dropped] = 0
        return output

    return hook
