"""A second masked reference, independent of ours: hooks on the backbone itself, untraced."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rnp_deploy.network import RuntimePrunedNetwork

__all__ = ["hooked_outputs"]


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
