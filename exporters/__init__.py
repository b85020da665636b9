"""Exporters: from a torch network to a bundle of ONNX graphs."""

from rnp_deploy.exporters.bundle_export import export_bundle

__all__ = ["export_bundle"]
