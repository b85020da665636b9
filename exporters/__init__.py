"""Exporters: from a torch network to a bundle of ONNX graphs, or to one ONNX model; from a bundle to a Triton model.

Importing this package loads no torch; what exports a network does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rnp_deploy.exporters.bundle_export import export_bundle
    from rnp_deploy.exporters.single_file import SingleFile, export_single_file
    from rnp_deploy.exporters.triton_repository import TritonSettings, write_triton_model

__all__ = ["SingleFile", "TritonSettings", "export_bundle", "export_single_file", "write_triton_model"]

_MODULES = {
    "SingleFile": "single_file",
    "TritonSettings": "triton_repository",
    "export_bundle": "bundle_export",
    "export_single_file": "single_file",
    "write_triton_model": "triton_repository",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"rnp_deploy.exporters.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
