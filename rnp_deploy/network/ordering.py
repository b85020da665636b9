"""Group order: strongest filters first, without changing what the full network computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rnp_deploy.network.channels import ParameterCut

__all__ = ["filter_order", "reorder_channels"]


def filter_order(layer: nn.Conv2d | nn.Linear, unit: int = 1) -> tuple[int, ...]:
    """Channel indices by falling L2 norm of their filters (paper, section 3.3; released code).

    Contiguous groups of this order have falling mean norms. Equal norms keep their order.

    Args:
        layer: The prunable layer.
        unit: Channels that only stay or go together; they keep their order among themselves.
    """
    norms = layer.weight.detach().reshape(layer.weight.shape[0] // unit, -1).double().norm(dim=1)
    units = torch.argsort(norms, descending=True, stable=True)
    return tuple(_expanded(units, unit).tolist())


def reorder_channels(
    module: nn.Module, cuts: Sequence[ParameterCut], orders: Mapping[str, Sequence[int]]
) -> None:
    """Permute, in place, everything that follows or reads the channels of each ordered conv.

    Args:
        module: Holds every parameter and buffer that ``cuts`` names.
        cuts: All cuts of the convolutions in ``orders``, those that read them included.
        orders: Conv path → the old index of each new position.
    """
    tensors: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for cut in cuts:
            tensor = tensors.get(cut.name)
            if tensor is None:
                continue  # a convolution or norm without this parameter
            unit = cut.channels.unit
            order = torch.tensor(orders[cut.conv][::unit], device=tensor.device) // unit
            index = _expanded(order, cut.channels.repeat)
            tensor.copy_(tensor.index_select(cut.axis, index))


def _expanded(order: Tensor, count: int) -> Tensor:
    """Old index of each new position where every entry of ``order`` stands for ``count`` in a row."""
    return (order[:, None] * count + torch.arange(count, device=order.device)).flatten()
