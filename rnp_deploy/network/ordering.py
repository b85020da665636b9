"""Group order: strongest filters first, without changing what the full network computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rnp_deploy.network.channels import ParameterCut

__all__ = ["filter_order", "reorder_channels"]


def filter_order(conv: nn.Conv2d) -> tuple[int, ...]:
    """Channel indices by falling L2 norm of their filters (paper, section 3.3; released code).

    Contiguous groups of this order have falling mean norms. Equal norms keep their order.
    """
    norms = conv.weight.detach().flatten(1).double().norm(dim=1)
    return tuple(int(i) for i in torch.argsort(norms, descending=True, stable=True))


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
            order = torch.tensor(orders[cut.conv], device=tensor.device)
            index = (order[:, None] * cut.repeat + torch.arange(cut.repeat, device=tensor.device)).flatten()
            tensor.copy_(tensor.index_select(cut.axis, index))
