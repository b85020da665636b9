"""torchvision's models, beside a torch whose build its compiled operators do not fit."""

from __future__ import annotations

import torch

__all__ = ["torchvision"]

_OPERATORS = (
    "nms", "qnms", "roi_align", "qroi_align", "_roi_align_backward", "ps_roi_align", "_ps_roi_align_backward",
    "roi_pool", "_roi_pool_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d",
    "_deform_conv2d_backward",
)  # fmt: skip
_library = torch.library.Library("torchvision", "FRAGMENT")
for _name in _OPERATORS:
    # torchvision describes these operators' shapes on import, and fails where they do not exist.
    if not hasattr(torch.ops.torchvision, _name):
        _library.define(f"{_name}(Tensor x) -> Tensor")

import torchvision  # noqa: E402
